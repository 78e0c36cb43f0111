{{/* Name of what the chart makes. */}}
{{- define "affect-monitor.name" -}}
{{- if contains "affect-monitor" .Release.Name -}}
{{ .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-affect-monitor" (.Release.Name | trunc 37 | trimSuffix "-") }}
{{- end -}}
{{- end -}}

{{/* What the tracks of the demo have in common. */}}
{{- define "affect-monitor.demo.selector" -}}
app.kubernetes.io/name: affect-monitor-demo
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{/* "stable", or "canary" within the scope of that track. */}}
{{- define "affect-monitor.track" -}}
{{ .track | default "stable" }}
{{- end -}}

{{/* What tells objects of the canary's from the stable ones of the same name. */}}
{{- define "affect-monitor.suffix" -}}
{{ with .track }}-{{ . }}{{ end }}
{{- end -}}

{{/* Labels of every object. */}}
{{- define "affect-monitor.labels" -}}
app.kubernetes.io/name: affect-monitor
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}
