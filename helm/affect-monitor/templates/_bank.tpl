{{/* Where the bank comes from. */}}

{{/* What the setting "bank" says: a shipped one's name, or the folder. */}}
{{- define "affect-monitor.bank" -}}
{{- $bank := .Values.bank -}}
{{- if eq $bank.from "package" -}}
{{ $bank.name }}
{{- else if has $bank.from (list "image" "claim") -}}
/var/lib/affect-monitor-bank/{{ get (get $bank $bank.from) "path" }}
{{- else -}}
/var/lib/affect-monitor-bank/bank
{{- end -}}
{{- end -}}

{{- define "affect-monitor.bank.volume" -}}
{{- $bank := .Values.bank -}}
{{- if eq $bank.from "image" -}}
{{- if semverCompare "<1.31.0-0" .Capabilities.KubeVersion.Version -}}
{{- fail (printf "bank.from: image volumes are there from Kubernetes 1.31 on, and this is %s; take initImage, claim or url" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
image: {reference: {{ $bank.image.reference | quote }}, pullPolicy: {{ $bank.image.pullPolicy }}}
{{- else if eq $bank.from "claim" -}}
persistentVolumeClaim: {claimName: {{ $bank.claim.name | quote }}, readOnly: true}
{{- else -}}
emptyDir: {}
{{- end -}}
{{- end -}}

{{- define "affect-monitor.bank.initContainers" -}}
{{- $bank := .Values.bank -}}
{{- if eq $bank.from "initImage" -}}
- name: affect-monitor-bank
  image: {{ $bank.initImage.image | quote }}
  imagePullPolicy: {{ $bank.initImage.pullPolicy }}
  command: {{ toJson $bank.initImage.command }}
  {{- include "affect-monitor.bank.rest" . | nindent 2 }}
{{- else if eq $bank.from "url" -}}
- name: affect-monitor-bank
  image: {{ include "affect-monitor.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args: [bank, fetch, --url, {{ $bank.url.location | quote }}, --sha256, {{ $bank.url.sha256 | quote }}, --out, /var/lib/affect-monitor-bank/bank]
  {{- include "affect-monitor.bank.rest" . | nindent 2 }}
{{- end -}}
{{- end -}}

{{- define "affect-monitor.bank.rest" -}}
resources:
  requests: {cpu: 100m, memory: 128Mi}
  limits: {memory: 512Mi}
securityContext:
  {{- include "affect-monitor.securityContext" . | nindent 2 }}
volumeMounts:
  - {name: affect-monitor-bank, mountPath: /var/lib/affect-monitor-bank}
{{- end -}}

{{/* Fails where a bank's source is not said whole. The schema cannot tell of values that are merged here. Takes (dict "bank" BANK "at" PATH). */}}
{{- define "affect-monitor.bank.check" -}}
{{- $asked := dict "image" (list "reference") "claim" (list "name") "initImage" (list "image") "url" (list "location" "sha256") -}}
{{- range get $asked .bank.from | default list -}}
{{- if not (get (get $.bank $.bank.from) .) -}}
{{- fail (printf "%s.%s.%s: is needed, as bank.from is %s there" $.at $.bank.from . $.bank.from) -}}
{{- end -}}
{{- end -}}
{{- end -}}
