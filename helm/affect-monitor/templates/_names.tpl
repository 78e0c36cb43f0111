{{/* Name of what the chart makes. */}}
{{- define "affect-monitor.name" -}}
{{- if contains "affect-monitor" .Release.Name -}}
{{ .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-affect-monitor" (.Release.Name | trunc 37 | trimSuffix "-") }}
{{- end -}}
{{- end -}}

{{/* Labels that select the pods of this release; with "component": NAME added by the caller. */}}
{{- define "affect-monitor.selector" -}}
app.kubernetes.io/name: affect-monitor
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Labels of every object. */}}
{{- define "affect-monitor.labels" -}}
{{ include "affect-monitor.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}
