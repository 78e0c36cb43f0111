{{/*
YAML as CEL, so that what the admission policy adds is what the other templates say. Every value is dyn: Kubernetes asks for lists and
maps of one type.
*/}}
{{- define "affect-monitor.cel" -}}
{{- if kindIs "map" . -}}
{
{{- range $at, $key := keys . | sortAlpha -}}
{{ if $at }}, {{ end }}{{ toJson $key }}: dyn({{ include "affect-monitor.cel" (get $ $key) }})
{{- end -}}
}
{{- else if kindIs "slice" . -}}
[
{{- range $at, $item := . -}}
{{ if $at }}, {{ end }}dyn({{ include "affect-monitor.cel" $item }})
{{- end -}}
]
{{- else -}}
{{ toJson . }}
{{- end -}}
{{- end -}}

{{/* Patches that append "items" to the list "field" of the pod, at "path" (CEL, both); what the pod has by the same name stays instead. */}}
{{- define "affect-monitor.cel.append" -}}
{{- $field := .field }}{{ $path := .path -}}
(has({{ $field }}) ? [] : [JSONPatch{op: "add", path: {{ $path }}, value: []}])
{{- range .items }} +
(has({{ $field }}) && {{ $field }}.exists(each, each.name == {{ toJson .name }}) ? [] : [
  JSONPatch{op: "add", path: {{ $path }} + "/-", value: {{ include "affect-monitor.cel" . }}}
])
{{- end }}
{{- end -}}

{{/* Patches that add "entries" to the map "field", at "path"; what the pod says already stays. */}}
{{- define "affect-monitor.cel.fill" -}}
{{- $field := .field }}{{ $path := .path -}}
(has({{ $field }}) ? [] : [JSONPatch{op: "add", path: {{ $path }}, value: {}}])
{{- range $key, $value := .entries }} +
(has({{ $field }}) && {{ toJson $key }} in {{ $field }} ? [] : [
  JSONPatch{op: "add", path: {{ include "affect-monitor.cel.at" (dict "path" $path "key" $key) }}, value: {{ include "affect-monitor.cel" $value }}}
])
{{- end }}
{{- end -}}

{{/* Patches that add "text" to the text at "key" of the map "field", at "path", where the pod has one. */}}
{{- define "affect-monitor.cel.lengthen" -}}
(has({{ .field }}) && {{ toJson .key }} in {{ .field }} ? [
  JSONPatch{op: "add", path: {{ include "affect-monitor.cel.at" . }}, value: {{ .field }}[{{ toJson .key }}] + {{ toJson .text }}}
] : [])
{{- end -}}

{{/* Path of "key" in the map at "path" (CEL, both). */}}
{{- define "affect-monitor.cel.at" -}}
{{ .path }} + {{ printf "/%s" (.key | replace "~" "~0" | replace "/" "~1") | toJson }}
{{- end -}}
