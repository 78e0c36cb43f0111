{{/*
What `affect-monitor rules build` made of this policy: as given by a value, else one of the files packaged for the default and the shipped
policies. Its last line names the policy's hash, so that another policy's is refused. Takes (dict "root" $ "given" TEXT "value" PATH
"folder" FOLDER "format" FORMAT "holds" KEYS), the keys on the way to what that format holds and others do not; gives YAML.
*/}}
{{- define "affect-monitor.built" -}}
{{- /* Python reads Windows' line ends as its own. */ -}}
{{- $origin := printf "# Policy: sha256 %s" (.root.Values.policy | replace "\r\n" "\n" | trim | sha256sum) -}}
{{- $found := dict -}}
{{- if .given -}}
{{- $_ := set $found "text" .given -}}
{{- else -}}
{{- range $path, $_ := .root.Files.Glob (printf "files/%s/*.yaml" .folder) -}}
{{- $text := $.root.Files.Get $path -}}
{{- if contains $origin $text -}}{{- $_ := set $found "text" $text -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- $make := printf "affect-monitor rules build --policy policy.yaml --format %s --out built.yaml, and --set-file policy=policy.yaml,%s=built.yaml" .format .value -}}
{{- if not $found.text -}}
{{- fail (printf "%s: the chart has none for this policy; make it: %s" .value $make) -}}
{{- else if not (contains $origin $found.text) -}}
{{- fail (printf "%s: was made of another policy than the value policy holds; make it anew: %s" .value $make) -}}
{{- end -}}
{{- $part := fromYaml $found.text -}}
{{- range .holds }}{{ $part = get ($part | default dict) . }}{{ end -}}
{{- if not $part -}}
{{- fail (printf "%s: is of another format, without %s; make it anew: %s" .value (join "." .holds) $make) -}}
{{- end -}}
{{ $found.text }}
{{- end -}}
