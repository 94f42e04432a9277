# What a container gets: environment, volumes, identity, limits; init containers, sidecars, hooks, restarts.
. ./lib.sh
kubectl create configmap conf --from-literal=greeting=hello --from-literal=file.txt=content
kubectl create secret generic keys --from-literal=password=s3cret
kubectl apply -f - <<'Y'
apiVersion: v1
kind: Pod
metadata: {name: full, labels: {app: full}, annotations: {note: here}}
spec:
  terminationGracePeriodSeconds: 5
  initContainers:
  - {name: first, image: "docker.io/library/busybox:1", command: [sh, -c, "echo one > /shared/init"], volumeMounts: [{name: shared, mountPath: /shared}]}
  - {name: second, image: "docker.io/library/busybox:1", command: [sh, -c, "echo two >> /shared/init"], volumeMounts: [{name: shared, mountPath: /shared}]}
  - {name: sidecar, image: "docker.io/library/busybox:1", restartPolicy: Always, command: [sh, -c, "echo side > /shared/side; exec sleep 3600"], volumeMounts: [{name: shared, mountPath: /shared}]}
  containers:
  - name: main
    image: docker.io/library/busybox:1
    command: [sh, -c, "trap 'exit 0' TERM; echo started $(GREETING); while true; do sleep 0.1; done"]
    env:
    - {name: GREETING, valueFrom: {configMapKeyRef: {name: conf, key: greeting}}}
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: keys, key: password}}}
    - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: CPU_LIMIT, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
    - {name: COMBINED, value: "$(GREETING)-$(POD_NAME)"}
    envFrom: [{configMapRef: {name: conf}, prefix: C_}]
    resources: {requests: {cpu: 50m, memory: 16Mi}, limits: {cpu: "1", memory: 64Mi}}
    lifecycle: {preStop: {exec: {command: [sh, -c, "echo stopping > /host/prestop"]}}}
    volumeMounts:
    - {name: shared, mountPath: /shared}
    - {name: conf, mountPath: /conf}
    - {name: keys, mountPath: /keys, readOnly: true}
    - {name: down, mountPath: /down}
    - {name: host, mountPath: /host}
    - {name: memory, mountPath: /memory}
  volumes:
  - {name: shared, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory}}
  - {name: conf, configMap: {name: conf}}
  - {name: keys, secret: {secretName: keys, defaultMode: 0400}}
  - {name: down, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
  - {name: host, hostPath: {path: /tmp/coxswain-e2e-host, type: DirectoryOrCreate}}
Y
rm -f /tmp/coxswain-e2e-host/prestop
ready pod/full
in_pod() { kubectl exec full -c main -- "$@"; }
variable() { in_pod sh -c "echo \$$1"; }
says 'started hello' kubectl logs full -c main
is 'one
two' in_pod cat /shared/init
is side in_pod cat /shared/side
is hello-full variable COMBINED
is s3cret variable PASSWORD
is hello variable C_greeting
is 1 variable CPU_LIMIT
is "$(kubectl get pod full -o jsonpath='{.status.podIP}')" variable POD_IP
is content in_pod cat /conf/file.txt
is s3cret in_pod cat /keys/password
is 400 in_pod stat -L -c %a /keys/password
says 'app="full"' in_pod cat /down/labels
says tmpfs in_pod grep ' /memory ' /proc/mounts
is "$NS" in_pod cat /var/run/secrets/kubernetes.io/serviceaccount/namespace
says 'BEGIN CERTIFICATE' in_pod cat /var/run/secrets/kubernetes.io/serviceaccount/ca.crt
is Burstable kubectl get pod full -o jsonpath='{.status.qosClass}'
is 67108864 sh -c "kubectl exec full -c main -- sh -c 'cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max'"
is true kubectl get pod full -o jsonpath='{.status.initContainerStatuses[2].started}'

# A changed ConfigMap reaches the volume.
kubectl patch configmap conf --type=merge -p '{"data":{"file.txt":"changed"}}'
eventually 30 is changed in_pod cat /conf/file.txt

# The projected token is good for the API.
token=$(in_pod cat /var/run/secrets/kubernetes.io/serviceaccount/token)
server=$(kubectl config view --minify -o jsonpath='{.clusters[0].cluster.server}')
says "system:serviceaccount:$NS:default" curl -sk -H "Authorization: Bearer $token" "$server/api/v1/namespaces/$NS/pods"

kubectl delete pod full
is stopping cat /tmp/coxswain-e2e-host/prestop

# Restarts back off, and say so.
kubectl run crash --image=docker.io/library/busybox:1 --image-pull-policy=IfNotPresent -- sh -c 'exit 3'
eventually 40 says CrashLoopBackOff kubectl get pod crash
is 3 kubectl get pod crash -o jsonpath='{.status.containerStatuses[0].lastState.terminated.exitCode}'
says 'Back-off restarting failed container' kubectl describe pod crash

# A pod that ends, and one that fails.
kubectl run once --image=docker.io/library/busybox:1 --image-pull-policy=IfNotPresent --restart=Never -- true
kubectl wait --for=jsonpath='{.status.phase}'=Succeeded pod/once --timeout=30s
kubectl run broken --image=docker.io/library/busybox:1 --image-pull-policy=IfNotPresent --restart=Never -- false
kubectl wait --for=jsonpath='{.status.phase}'=Failed pod/broken --timeout=30s
kubectl run absent --image=docker.io/library/absent:1 --image-pull-policy=Never
eventually 20 says ErrImageNeverPull kubectl get pod absent

# Containers that end at once are seen to end.
{
  echo '{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "quick"}, "spec": {"restartPolicy": "Never", "initContainers": ['
  for n in 1 2 3 4 5 6 7 8 9; do echo "{\"name\": \"i$n\", \"image\": \"docker.io/library/busybox:1\", \"command\": [\"true\"]},"; done
  echo '{"name": "last", "image": "docker.io/library/busybox:1", "command": ["true"]}],'
  echo '"containers": [{"name": "c", "image": "docker.io/library/busybox:1", "command": ["true"]}]}}'
} | kubectl apply -f -
kubectl wait --for=jsonpath='{.status.phase}'=Succeeded pod/quick --timeout=60s
