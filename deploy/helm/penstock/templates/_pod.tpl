{{/* The pod of either kind. */}}
{{- define "penstock.pod" -}}
{{- $kernel := include "penstock.kernel" . -}}
{{- $hostNetwork := include "penstock.hostNetwork" . -}}
{{- $lowPorts := include "penstock.lowPorts" . -}}
{{- $capabilities := list -}}
{{- if $kernel }}{{ $capabilities = list "BPF" "NET_ADMIN" "PERFMON" }}{{ end -}}
{{- if and $kernel .Values.controller.announce.interfaces }}{{ $capabilities = append $capabilities "NET_RAW" }}{{ end -}}
{{- if and $hostNetwork $lowPorts }}{{ $capabilities = append $capabilities "NET_BIND_SERVICE" }}{{ end -}}
metadata:
  {{- with .Values.controller.podAnnotations }}
  annotations:
    {{- include "penstock.strings" . | nindent 4 }}
  {{- end }}
  labels:
    {{- include "penstock.labels" . | nindent 4 }}
    {{- with .Values.controller.podLabels }}
    {{- include "penstock.strings" . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "penstock.serviceAccount" . }}
  # It watches the cluster; the account itself hands out no token.
  automountServiceAccountToken: true
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if $hostNetwork }}
  hostNetwork: true
  {{- end }}
  dnsPolicy: {{ default ($hostNetwork | empty | ternary "ClusterFirst" "ClusterFirstWithHostNet") .Values.controller.dnsPolicy }}
  {{- with .Values.controller.dnsConfig }}
  dnsConfig:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.controller.hostAliases }}
  hostAliases:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.controller.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .Values.controller.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  terminationGracePeriodSeconds: {{ .Values.controller.terminationGracePeriodSeconds }}
  {{- if .Values.controller.shareProcessNamespace }}
  shareProcessNamespace: true
  {{- end }}
  {{- $security := dict "seccompProfile" (dict "type" "RuntimeDefault") }}
  {{- $sysctls := list }}
  {{- if and $lowPorts (not $hostNetwork) }}
  {{- /* Ports below 1024 without root and without a capability. */}}
  {{- $sysctls = list (dict "name" "net.ipv4.ip_unprivileged_port_start" "value" "0") }}
  {{- end }}
  {{- range $name, $value := .Values.controller.sysctls }}
  {{- $sysctls = append $sysctls (dict "name" $name "value" (include "penstock.text" $value)) }}
  {{- end }}
  {{- with $sysctls }}{{ $security = set $security "sysctls" . }}{{ end }}
  securityContext:
    {{- mergeOverwrite $security .Values.controller.podSecurityContext | toYaml | nindent 4 }}
  {{- with .Values.controller.extraInitContainers }}
  initContainers:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: {{ default .Values.controller.name .Values.controller.containerName }}
      {{- if contains "ingress-nginx/controller" (printf "%s %s" .Values.controller.image.image .Values.controller.image.repository) }}
      {{- fail "controller.image names the image of ingress-nginx; this chart runs penstock: leave image, repository, tag and digest out of your values, or name penstock's" }}
      {{- end }}
      image: {{ include "penstock.image" (dict "root" . "image" .Values.controller.image "version" .Chart.AppVersion) | quote }}
      imagePullPolicy: {{ .Values.controller.image.pullPolicy }}
      args:
        {{- include "penstock.args" . | nindent 8 }}
      {{- /* Without root no capability would be left after the start; with root, these are all it has. */}}
      {{- $container := dict "allowPrivilegeEscalation" false "readOnlyRootFilesystem" true "capabilities" (dict "drop" (list "ALL")) }}
      {{- if $capabilities }}
      {{- $container = merge (dict "runAsUser" 0 "runAsGroup" 0 "capabilities" (dict "add" $capabilities)) $container }}
      {{- else }}
      {{- $container = merge (dict "runAsNonRoot" true "runAsUser" 65532 "runAsGroup" 65532) $container }}
      {{- end }}
      securityContext:
        {{- mergeOverwrite $container .Values.controller.containerSecurityContext | toYaml | nindent 8 }}
      env:
        - name: POD_NAME
          valueFrom:
            fieldRef:
              fieldPath: metadata.name
        - name: POD_NAMESPACE
          valueFrom:
            fieldRef:
              fieldPath: metadata.namespace
        - name: NODE_NAME
          valueFrom:
            fieldRef:
              fieldPath: spec.nodeName
        # For `penstock status` in the container, too.
        - name: PENSTOCK_ADMIN
          value: ":{{ .Values.controller.metrics.port }}"
        {{- if $kernel }}
        - name: PENSTOCK_HASH_KEY
          valueFrom:
            secretKeyRef:
              name: {{ include "penstock.hashKeySecret" . }}
              key: hash-key
        {{- end }}
        {{- with .Values.controller.extraEnvs }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        - name: http
          containerPort: {{ .Values.controller.containerPort.http }}
          protocol: TCP
          {{- if and .Values.controller.hostPort.enabled (not $hostNetwork) }}
          hostPort: {{ .Values.controller.hostPort.ports.http }}
          {{- end }}
        - name: https
          containerPort: {{ .Values.controller.containerPort.https }}
          protocol: TCP
          {{- if and .Values.controller.hostPort.enabled (not $hostNetwork) }}
          hostPort: {{ .Values.controller.hostPort.ports.https }}
          {{- end }}
        - name: {{ .Values.controller.metrics.portName }}
          containerPort: {{ .Values.controller.metrics.port }}
          protocol: TCP
        {{- if .Values.controller.admissionWebhooks.enabled }}
        - name: webhook
          containerPort: {{ .Values.controller.admissionWebhooks.port }}
          protocol: TCP
        {{- end }}
        {{- range $port, $to := .Values.tcp }}
        - name: {{ include "penstock.portName" (dict "root" $ "port" $port "protocol" "tcp") }}
          containerPort: {{ $port }}
          protocol: TCP
        {{- end }}
        {{- range $port, $to := .Values.udp }}
        - name: {{ include "penstock.portName" (dict "root" $ "port" $port "protocol" "udp") }}
          containerPort: {{ $port }}
          protocol: UDP
        {{- end }}
      {{- with .Values.controller.livenessProbe }}
      livenessProbe:
        {{- include "penstock.probe" (dict "probe" . "values" $.Values) | nindent 8 }}
      {{- end }}
      {{- with .Values.controller.readinessProbe }}
      readinessProbe:
        {{- include "penstock.probe" (dict "probe" . "values" $.Values) | nindent 8 }}
      {{- end }}
      {{- with .Values.controller.startupProbe }}
      startupProbe:
        {{- include "penstock.probe" (dict "probe" . "values" $.Values) | nindent 8 }}
      {{- end }}
      {{- /* In a values file of ingress-nginx's there is a program that waits, which SIGTERM does here. */}}
      {{- $lifecycle := deepCopy .Values.controller.lifecycle }}
      {{- if include "penstock.waitShutdown" . }}{{ $lifecycle = omit $lifecycle "preStop" }}{{ end }}
      {{- with $lifecycle }}
      lifecycle:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .Values.controller.resources }}
      resources:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      volumeMounts:
        - name: run
          mountPath: /run/penstock
        - name: tmp
          mountPath: /tmp
        {{- if $kernel }}
        # What is pinned there forwards on while one pod follows another.
        - name: bpffs
          mountPath: /sys/fs/bpf
          mountPropagation: HostToContainer
        {{- end }}
        {{- if and .Values.controller.admissionWebhooks.enabled (not (include "penstock.webhookOwn" .)) }}
        - name: webhook-cert
          mountPath: /usr/local/certificates
          readOnly: true
        {{- end }}
        {{- with .Values.controller.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    {{- with .Values.controller.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    - name: run
      emptyDir: {}
    - name: tmp
      emptyDir:
        sizeLimit: {{ .Values.controller.temporaryDirectory.sizeLimit }}
    {{- if $kernel }}
    - name: bpffs
      hostPath:
        path: /sys/fs/bpf
        type: Directory
    {{- end }}
    {{- if and .Values.controller.admissionWebhooks.enabled (not (include "penstock.webhookOwn" .)) }}
    - name: webhook-cert
      secret:
        secretName: {{ include "penstock.webhookSecret" . }}
        items:
          - key: tls.crt
            path: cert
          - key: tls.key
            path: key
    {{- end }}
    {{- with .Values.controller.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .Values.controller.nodeSelector }}
  nodeSelector:
    {{- include "penstock.strings" . | nindent 4 }}
  {{- end }}
  {{- with .Values.controller.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.controller.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.controller.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* Flags of `penstock run`. */}}
{{- define "penstock.args" -}}
- run
- --http=:{{ .Values.controller.containerPort.http }}
- --https=:{{ .Values.controller.containerPort.https }}
- --datapath={{ include "penstock.datapath" . }}
{{- range .Values.controller.interfaces }}
- --interface={{ . }}
{{- end }}
{{- range .Values.controller.announce.interfaces }}
- --announce={{ . }}
{{- end }}
- --configmap=$(POD_NAMESPACE)/{{ include "penstock.controller" . }}
- --controller-class={{ .Values.controller.ingressClassResource.controllerValue }}
- --ingress-class={{ .Values.controller.ingressClass }}
{{- if .Values.controller.watchIngressWithoutClass }}
- --watch-ingress-without-class=true
{{- end }}
{{- if .Values.controller.enableTopologyAwareRouting }}
- --enable-topology-aware-routing=true
{{- end }}
{{- if .Values.controller.ingressClassByName }}
- --ingress-class-by-name=true
{{- end }}
{{- if .Values.controller.scope.enabled }}
- --watch-namespace={{ include "penstock.watchedNamespace" . }}
{{- else if .Values.controller.scope.namespaceSelector }}
- --watch-namespace-selector={{ .Values.controller.scope.namespaceSelector }}
{{- end }}
- --election-id={{ include "penstock.electionID" . }}
{{- with .Values.controller.electionTTL }}
- --election-ttl={{ . }}
{{- end }}
{{- if .Values.controller.disableLeaderElection }}
- --disable-leader-election=true
{{- end }}
{{- if ne .Values.controller.healthCheckPath "/healthz" }}
- --health-check-path={{ .Values.controller.healthCheckPath }}
{{- end }}
{{- $service := include "penstock.publishedService" . }}
{{- if and .Values.controller.publishService.enabled (or .Values.controller.publishService.pathOverride $service) }}
- --publish-service={{ default (printf "$(POD_NAMESPACE)/%s" $service) .Values.controller.publishService.pathOverride }}
{{- end }}
{{- if not .Values.controller.updateStatus }}
- --update-status=false
{{- end }}
{{- if .Values.controller.reportNodeInternalIp }}
- --report-node-internal-ip-address=true
{{- end }}
{{- $default := .Values.defaultBackend.enabled | ternary (printf "$(POD_NAMESPACE)/%s" (include "penstock.defaultBackend" .)) "" }}
{{- with default $default .Values.controller.defaultBackendService }}
- --default-backend-service={{ . }}
{{- end }}
{{- if .Values.tcp }}
- --tcp-services-configmap=$(POD_NAMESPACE)/{{ include "penstock.fullname" . }}-tcp
{{- end }}
{{- if .Values.udp }}
- --udp-services-configmap=$(POD_NAMESPACE)/{{ include "penstock.fullname" . }}-udp
{{- end }}
{{- if .Values.controller.admissionWebhooks.enabled }}
- --validating-webhook=:{{ .Values.controller.admissionWebhooks.port }}
{{- if .Values.controller.admissionWebhooks.warnOnly }}
- --validating-webhook-warn-only=true
{{- end }}
{{- if include "penstock.webhookOwn" . }}
- --validating-webhook-configuration={{ include "penstock.fullname" . }}-admission
{{- else }}
- --validating-webhook-certificate=/usr/local/certificates/cert
- --validating-webhook-key=/usr/local/certificates/key
{{- end }}
{{- end }}
- --shutdown-grace-period={{ .Values.controller.shutdownGracePeriod }}
{{- range $name, $value := .Values.controller.extraArgs }}
- --{{ $name }}{{ if not (or (kindIs "invalid" $value) (eq (toString $value) "")) }}={{ include "penstock.text" $value }}{{ end }}
{{- end }}
{{- end -}}
