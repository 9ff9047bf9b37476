{{/* Names. Objects are called as ingress-nginx's chart calls them, so that the commands people have go on
     working, and an upgrade in place keeps the Service and its address. */}}
{{- define "penstock.name" -}}
{{- default "ingress-nginx" .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "penstock.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if or (contains (include "penstock.name" .) .Release.Name) (contains "penstock" .Release.Name) -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "penstock.name" .) | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "penstock.controller" -}}
{{- printf "%s-%s" (include "penstock.fullname" .) .Values.controller.name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "penstock.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride -}}
{{- end -}}

{{- define "penstock.defaultBackend" -}}
{{- printf "%s-%s" (include "penstock.fullname" .) .Values.defaultBackend.name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "penstock.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "penstock.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- /* Of a flag given twice the last one counts, and values of ingress-nginx may have it in extraArgs alone. */}}
{{- define "penstock.electionID" -}}
{{- $more := .Values.controller.extraArgs | default dict -}}
{{- $own := default (printf "%s-leader" (include "penstock.fullname" .)) .Values.controller.electionID -}}
{{- if hasKey $more "election-id" -}}{{ index $more "election-id" | toString }}{{- else -}}{{ $own }}{{- end -}}
{{- end -}}

{{- define "penstock.updateStatus" -}}
{{- $more := .Values.controller.extraArgs | default dict -}}
{{- if hasKey $more "update-status" -}}{{ index $more "update-status" | toString }}{{- else -}}{{ .Values.controller.updateStatus | toString }}{{- end -}}
{{- end -}}

{{- define "penstock.hashKeySecret" -}}
{{- default (printf "%s-hash-key" (include "penstock.fullname" .)) .Values.controller.hashKey.existingSecret -}}
{{- end -}}

{{- define "penstock.webhookSecret" -}}
{{- default (printf "%s-admission-certificate" (include "penstock.fullname" .)) .Values.controller.admissionWebhooks.existingSecret -}}
{{- end -}}

{{/* Not empty: the agents make the webhook's certificate themselves. */}}
{{- define "penstock.webhookOwn" -}}
{{- with .Values.controller.admissionWebhooks -}}
{{- if and .enabled (not .certManager.enabled) (not .existingSecret) }}yes{{ end -}}
{{- end -}}
{{- end -}}

{{- define "penstock.watchedNamespace" -}}
{{- default (include "penstock.namespace" .) .Values.controller.scope.namespace -}}
{{- end -}}

{{/* Labels of `scope.namespaceSelector` as Kubernetes writes them, where it says nothing but what they are: a webhook
     that asks about more is answered by the agent, which knows the rest. */}}
{{- define "penstock.watchedLabels" -}}
{{- $selector := nospace .Values.controller.scope.namespaceSelector -}}
{{- if regexMatch "^[^=!(),]+==?[^=!(),]+(,[^=!(),]+==?[^=!(),]+)*$" $selector -}}
{{- range splitList "," $selector }}
{{ splitList "=" . | first }}: {{ splitList "=" . | last | quote }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A probe that asks the port `metrics` asks it under the name that `metrics.portName` gives it, and one that asks for
     /healthz asks where that is. */}}
{{- define "penstock.probe" -}}
{{- $probe := deepCopy .probe -}}
{{- with $probe.httpGet -}}
{{- if eq (toString .port) "metrics" -}}{{- $_ := set . "port" $.values.controller.metrics.portName -}}{{- end -}}
{{- if eq (toString .path) "/healthz" -}}{{- $_ := set . "path" $.values.controller.healthCheckPath -}}{{- end -}}
{{- end -}}
{{- toYaml $probe -}}
{{- end -}}

{{/* Labels. */}}
{{- define "penstock.selectorLabels" -}}
app.kubernetes.io/name: {{ include "penstock.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: controller
{{- end -}}

{{- define "penstock.labels" -}}
{{ include "penstock.labelsOf" (dict "root" . "selector" "penstock.selectorLabels") }}
{{- end -}}

{{- define "penstock.backendSelectorLabels" -}}
app.kubernetes.io/name: {{ include "penstock.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: default-backend
{{- end -}}

{{- define "penstock.backendLabels" -}}
{{ include "penstock.labelsOf" (dict "root" . "selector" "penstock.backendSelectorLabels") }}
{{- end -}}

{{/* All labels of a part that is selected by those. */}}
{{- define "penstock.labelsOf" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{ include .selector .root }}
app.kubernetes.io/part-of: {{ include "penstock.name" .root }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- with .root.Values.commonLabels }}
{{ include "penstock.strings" . }}
{{- end }}
{{- end -}}

{{/* A map whose values are strings for Kubernetes, although YAML or `--set` made numbers or booleans of them. */}}
{{- define "penstock.strings" -}}
{{- $strings := dict -}}
{{- range $key, $value := . -}}
{{- $_ := set $strings $key (include "penstock.text" $value) -}}
{{- end -}}
{{- toYaml $strings -}}
{{- end -}}

{{/* Shape. "true" or nothing. */}}
{{- define "penstock.datapath" -}}
{{- default (eq .Values.controller.kind "DaemonSet" | ternary "auto" "off") .Values.controller.datapath -}}
{{- end -}}

{{- define "penstock.kernel" -}}
{{- if ne (include "penstock.datapath" .) "off" }}true{{ end -}}
{{- end -}}

{{- define "penstock.hostNetwork" -}}
{{- if kindIs "bool" .Values.controller.hostNetwork -}}
{{- if .Values.controller.hostNetwork }}true{{ end -}}
{{- else if and (include "penstock.kernel" .) (eq .Values.controller.kind "DaemonSet") }}true{{ end -}}
{{- end -}}

{{- define "penstock.lowPorts" -}}
{{- if or (lt (int .Values.controller.containerPort.http) 1024) (lt (int .Values.controller.containerPort.https) 1024) }}true{{ end -}}
{{- end -}}

{{/* Whose addresses Ingresses are reached by; nothing without a Service. */}}
{{- define "penstock.publishedService" -}}
{{- with .Values.controller.service -}}
{{- if and .enabled .external.enabled -}}{{- include "penstock.controller" $ -}}
{{- else if and .enabled .internal.enabled -}}{{- include "penstock.controller" $ }}-internal
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What a Service's specification says beside type, ports and selector, where it says it. */}}
{{- define "penstock.serviceSpec" -}}
{{- $spec := dict -}}
{{- range $field := list "clusterIP" "clusterIPs" "externalIPs" "loadBalancerIP" "loadBalancerClass" "loadBalancerSourceRanges" "externalTrafficPolicy" "healthCheckNodePort" "sessionAffinity" "trafficDistribution" "ipFamilyPolicy" "ipFamilies" -}}
{{- with get $ $field }}{{ $_ := set $spec $field . }}{{ end -}}
{{- end -}}
{{- if kindIs "bool" .allocateLoadBalancerNodePorts }}{{ $_ := set $spec "allocateLoadBalancerNodePorts" .allocateLoadBalancerNodePorts }}{{ end -}}
{{- if $spec }}{{ toYaml $spec }}{{ end -}}
{{- end -}}

{{/* Names of ports 1234-tcp. */}}
{{- define "penstock.portName" -}}
{{- $prefix := .root.Values.portNamePrefix -}}
{{- $prefix | empty | ternary (printf "%v-%s" .port .protocol) (printf "%s-%v-%s" $prefix .port .protocol) -}}
{{- end -}}

{{/* Of `image`: its name, with the registry of all images where it names none, and `version` where it has no tag. */}}
{{- define "penstock.image" -}}
{{- $registry := default .root.Values.global.image.registry .image.registry -}}
{{- $name := default (empty $registry | ternary .image.image (printf "%s/%s" $registry .image.image)) .image.repository -}}
{{- if .image.digest }}{{ $name }}@{{ .image.digest }}{{ else }}{{ $name }}:{{ default .version .image.tag }}{{ end -}}
{{- end -}}

{{/* A value as text. Numbers of a values file are floats, which would be written as 1.048576e+06. */}}
{{- define "penstock.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- end -}}
