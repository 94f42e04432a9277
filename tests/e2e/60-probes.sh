# Liveness restarts, readiness takes out of service, startup holds both back.
. ./lib.sh
kubectl apply -f - <<'Y'
apiVersion: v1
kind: Pod
metadata: {name: probed, labels: {app: probed}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: http
    image: docker.io/coxswain/web:1
    startupProbe: {httpGet: {path: /version, port: 80}, periodSeconds: 1, failureThreshold: 30}
    readinessProbe: {httpGet: {path: /index.html, port: 80, httpHeaders: [{name: X, value: z}]}, periodSeconds: 1}
    livenessProbe: {tcpSocket: {port: 80}, periodSeconds: 1}
  - name: file
    image: docker.io/library/busybox:1
    command: [sh, -c, "touch /tmp/alive; exec sleep 3600"]
    livenessProbe: {exec: {command: [test, -e, /tmp/alive]}, periodSeconds: 1, failureThreshold: 1}
  - name: grpc
    image: docker.io/library/busybox:1
    command: [sleep, "3600"]
    startupProbe: {grpc: {port: 9555, service: nothing}, periodSeconds: 1, failureThreshold: 1000}
Y
kubectl expose pod probed --port=80
# The gRPC server does not exist: its container has not started, and so the pod is not ready.
eventually 30 is true kubectl get pod probed -o jsonpath='{.status.containerStatuses[?(@.name=="http")].ready}'
is false kubectl get pod probed -o jsonpath='{.status.containerStatuses[?(@.name=="grpc")].started}'
eventually 20 says 'Startup probe failed' kubectl describe pod probed

kubectl exec probed -c file -- rm /tmp/alive
eventually 30 is 1 kubectl get pod probed -o jsonpath='{.status.containerStatuses[?(@.name=="file")].restartCount}'
says 'Liveness probe failed' kubectl describe pod probed

# A health service that serves, and one that does not know the service which it is asked for.
kubectl apply -f - <<'Y'
apiVersion: v1
kind: Pod
metadata: {name: health}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: known
    image: docker.io/coxswain/etcd:1
    command: [etcd, --data-dir, /tmp/known, --listen-client-urls, "http://0.0.0.0:2379", --advertise-client-urls, "http://localhost:2379"]
    startupProbe: {grpc: {port: 2379}, periodSeconds: 1, failureThreshold: 30}
    readinessProbe: {grpc: {port: 2379}, periodSeconds: 1}
    livenessProbe: {grpc: {port: 2379}, periodSeconds: 1, failureThreshold: 1}
  - name: unknown
    image: docker.io/library/busybox:1
    command: [sleep, "3600"]
    readinessProbe: {grpc: {port: 2379, service: nothing}, periodSeconds: 1}
Y
eventually 30 is true kubectl get pod health -o jsonpath='{.status.containerStatuses[?(@.name=="known")].ready}'
eventually 20 says 'Readiness probe failed' kubectl describe pod health
is false kubectl get pod health -o jsonpath='{.status.containerStatuses[?(@.name=="unknown")].ready}'
sleep 2
is 0 kubectl get pod health -o jsonpath='{.status.containerStatuses[?(@.name=="known")].restartCount}'

# Endpoints follow readiness.
kubectl create deployment gate --image=docker.io/coxswain/web:1
kubectl patch deployment gate -p '{"spec":{"template":{"spec":{"terminationGracePeriodSeconds":1,"containers":[{"name":"web","readinessProbe":{"exec":{"command":["test","-e","/tmp/www/version"]},"periodSeconds":1,"failureThreshold":1}}]}}}}'
kubectl expose deployment gate --port=80
kubectl rollout status deployment/gate --timeout=60s
eventually 20 sh -c 'kubectl get endpoints gate -o jsonpath="{.subsets[*].addresses[*].ip}" | grep -q .'
# The pod of before the patch may still be leaving.
eventually 20 is 1 sh -c "kubectl get pods -l app=gate --no-headers | wc -l | tr -d ' '"
pod=$(kubectl get pods -l app=gate -o name)
kubectl exec "$pod" -- mv /tmp/www/version /tmp/www/away
eventually 20 is '' kubectl get endpoints gate -o jsonpath='{.subsets[*].addresses[*].ip}'
kubectl exec "$pod" -- mv /tmp/www/away /tmp/www/version
eventually 20 sh -c 'kubectl get endpoints gate -o jsonpath="{.subsets[*].addresses[*].ip}" | grep -q .'
