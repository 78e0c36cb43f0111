{{/*
What puts the sidecar into a pod. Charts that depend on this one include these with its scope:

  {{- include "affect-monitor.volumes" (index .Subcharts "affect-monitor") | nindent 8 }}

  metadata.labels         affect-monitor.podLabels
  metadata.annotations    affect-monitor.podAnnotations
  spec.securityContext    affect-monitor.podSecurityContext   empty without sidecar.fixedIds
  spec.initContainers     affect-monitor.initContainers       empty for a classic sidecar with a bank that no container brings
  spec.containers         affect-monitor.containers           empty for a native sidecar
  spec.volumes            affect-monitor.volumes
  of the engine:          affect-monitor.engine.volumeMounts, affect-monitor.engine.args, affect-monitor.engine.env
*/}}

{{- define "affect-monitor.podLabels" -}}
affect-monitor.io/sidecar: "true"
{{- end -}}

{{/* The autoscaler may move such pods: nothing in these volumes outlives them anyway. */}}
{{- define "affect-monitor.podAnnotations" -}}
{{ include "affect-monitor.localVolumesKey" . }}: {{ include "affect-monitor.localVolumes" . }}
{{- if .Values.config.rollPods }}
affect-monitor.io/config-checksum: {{ include "affect-monitor.config" . | sha256sum | quote }}
{{- end }}
{{- end -}}

{{- define "affect-monitor.localVolumesKey" -}}
cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes
{{- end -}}

{{- define "affect-monitor.localVolumes" -}}
{{- $names := list -}}
{{- range include "affect-monitor.volumes" . | fromYamlArray -}}
{{- if hasKey . "emptyDir" -}}{{- $names = append $names .name -}}{{- end -}}
{{- end -}}
{{ join "," $names }}
{{- end -}}

{{/*
The socket has mode 0660 and the sidecar's group, and every container of the pod is in it: an engine that is root without capabilities reaches
it as well as one that is not root. Where the pod has an fsGroup, the socket's folder hands that one on, which every container is in too.
A Secret's file belongs to root, so that only an fsGroup lets the sidecar read a token that others may not read. Without fixed ids this is
empty: the cluster gives every pod a user and an fsGroup of its namespace's own.
*/}}
{{- define "affect-monitor.podSecurityContext" -}}
{{- if .Values.sidecar.fixedIds -}}
supplementalGroups: [10001]
{{- if .Values.token.secretName }}
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
{{- end }}
{{- end -}}
{{- end -}}

{{- define "affect-monitor.initContainers" -}}
{{- include "affect-monitor.bank.initContainers" . -}}
{{- if eq .Values.sidecar.kind "native" }}
- {{ include "affect-monitor.sidecar" . | indent 2 | trim }}
{{- end -}}
{{- end -}}

{{- define "affect-monitor.containers" -}}
{{- if eq .Values.sidecar.kind "classic" -}}
- {{ include "affect-monitor.sidecar" . | indent 2 | trim }}
{{- end -}}
{{- end -}}

{{- define "affect-monitor.image" -}}
{{- $tagged := printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- with .Values.image.digest -}}{{ $tagged }}@{{ . }}{{- else -}}{{ $tagged }}{{- end -}}
{{- end -}}

{{- define "affect-monitor.sidecar" -}}
name: affect-monitor
image: {{ include "affect-monitor.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- if eq .Values.sidecar.kind "native" }}
restartPolicy: Always
{{- end }}
args: [serve, --settings, /etc/affect-monitor/settings.yaml]
env:
  {{- /* Said here, since Kubernetes would set it to an address beside a Service called affect-http. */}}
  - {name: AFFECT_HTTP_PORT, value: "9469"}
ports:
  - {name: affect-http, containerPort: 9469, protocol: TCP}
{{- /* By HTTP: the kubelet's gRPC probes reach no unix socket. Not for readiness: a slow monitor takes no engine out of its Service. */}}
startupProbe:
  httpGet: {path: /readyz, port: affect-http}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: {{ div .Values.sidecar.startupSeconds 2 }}
livenessProbe:
  httpGet: {path: /healthz, port: affect-http}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- if eq .Values.sidecar.kind "classic" }}
{{- /* A classic sidecar is told to stop at the same time as the engine, whose last turns it is still to take. */}}
lifecycle:
  preStop:
    exec: {command: [python, -c, "import time; time.sleep({{ .Values.sidecar.preStopSeconds }})"]}
{{- end }}
resources:
  {{- toYaml .Values.sidecar.resources | nindent 2 }}
securityContext:
  {{- include "affect-monitor.securityContext" . | nindent 2 }}
volumeMounts:
  - {name: affect-monitor-socket, mountPath: /run/affect-monitor}
  - {name: affect-monitor-config, mountPath: /etc/affect-monitor, readOnly: true}
  - {name: affect-monitor-state, mountPath: /var/lib/affect-monitor}
  - {name: affect-monitor-tmp, mountPath: /tmp}
  {{- if ne .Values.bank.from "package" }}
  - {name: affect-monitor-bank, mountPath: /var/lib/affect-monitor-bank, readOnly: true}
  {{- end }}
  {{- if .Values.token.secretName }}
  - {name: affect-monitor-token, mountPath: /run/secrets/affect-monitor, readOnly: true}
  {{- end }}
{{- end -}}

{{/* What Kubernetes calls restricted. User and group are said, so that a pod that runs as root does not make the sidecar do so. */}}
{{- define "affect-monitor.securityContext" -}}
runAsNonRoot: true
{{- if .Values.sidecar.fixedIds }}
runAsUser: 10001
runAsGroup: 10001
{{- end }}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "affect-monitor.volumes" -}}
- name: affect-monitor-socket
  emptyDir: {medium: Memory, sizeLimit: 64Mi}
- name: affect-monitor-config
  configMap: {name: {{ include "affect-monitor.configName" . }}}
{{- /* No sizeLimit: who oversteps it is evicted, engine and all. The settings bound what the sidecar writes. */}}
- name: affect-monitor-state
  emptyDir: {}
- name: affect-monitor-tmp
  emptyDir: {}
{{- if ne .Values.bank.from "package" }}
- name: affect-monitor-bank
  {{- include "affect-monitor.bank.volume" . | nindent 2 }}
{{- end }}
{{- with .Values.token }}{{ if .secretName }}
- name: affect-monitor-token
  secret:
    secretName: {{ .secretName | quote }}
    defaultMode: 0440
    items: [{key: {{ .key | quote }}, path: token}]
{{- end }}{{ end }}
{{- end -}}

{{- define "affect-monitor.engine.volumeMounts" -}}
- {name: affect-monitor-socket, mountPath: /run/affect-monitor}
{{- end -}}

{{- define "affect-monitor.engine.args" -}}
{{- with .Values.engine.args }}{{ toYaml . }}{{ end -}}
{{- end -}}

{{- define "affect-monitor.engine.env" -}}
{{- with .Values.engine.env }}{{ toYaml . }}{{ end -}}
{{- end -}}
