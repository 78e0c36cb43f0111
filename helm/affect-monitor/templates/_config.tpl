{{/* What stands in the ConfigMap. */}}

{{- define "affect-monitor.configName" -}}
{{ include "affect-monitor.name" . }}-config{{ include "affect-monitor.suffix" . }}
{{- end -}}

{{- define "affect-monitor.config" -}}
settings.yaml: |
  {{- include "affect-monitor.settings" . | nindent 2 }}
policy.yaml: |
  {{- .Values.policy | trim | nindent 2 }}
{{- end -}}

{{- define "affect-monitor.settings" -}}
{{- $made := dict
  "bank" (include "affect-monitor.bank" .)
  "policy" "/etc/affect-monitor/policy.yaml"
  "ingest" "unix:///run/affect-monitor/ingest.sock"
  "socket_mode" "0660"
  "http_host" "0.0.0.0"
  "drain_seconds" .Values.sidecar.drainSeconds
  "state_file" "/var/lib/affect-monitor/state.json"
-}}
{{- /* Injected pods roll with a workload that knows nothing of this ConfigMap. */ -}}
{{- if or .Values.inject.enabled (not .Values.config.rollPods) -}}
{{- $_ := set $made "reload_on_change" true -}}
{{- end -}}
{{- if .Values.token.secretName -}}
{{- $_ := set $made "token_file" "/run/secrets/affect-monitor/token" -}}
{{- end -}}
{{ toYaml (mergeOverwrite $made (deepCopy .Values.settings)) }}
{{- end -}}
