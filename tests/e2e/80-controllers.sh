# Controllers keep what was wished, collect what is left, and empty what goes.
. ./lib.sh
kubectl apply -f - <<'Y'
apiVersion: v1
kind: ReplicationController
metadata: {name: old}
spec:
  replicas: 2
  template:
    metadata: {labels: {app: old}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: "docker.io/library/busybox:1", command: [sleep, "3600"]}]}
Y
eventually 30 is 2 kubectl get replicationcontroller old -o jsonpath='{.status.readyReplicas}'
victim=$(kubectl get pods -l app=old -o name | head -1)
kubectl delete "$victim" --grace-period=0 --force
eventually 30 is 2 kubectl get replicationcontroller old -o jsonpath='{.status.readyReplicas}'
kubectl delete replicationcontroller old --cascade=foreground
is '' kubectl get pods -l app=old -o name

# Dependants go with their owner.
kubectl create configmap owner
uid=$(kubectl get configmap owner -o jsonpath='{.metadata.uid}')
kubectl apply -f - <<Y
apiVersion: v1
kind: ConfigMap
metadata:
  name: dependant
  ownerReferences: [{apiVersion: v1, kind: ConfigMap, name: owner, uid: $uid}]
Y
kubectl delete configmap owner
eventually 20 refuses NotFound kubectl get configmap dependant

is default kubectl get serviceaccount default -o jsonpath='{.metadata.name}'
says 'BEGIN CERTIFICATE' kubectl get configmap kube-root-ca.crt -o yaml

# A namespace is emptied, its pods too.
kubectl create namespace "$NS-away"
kubectl --namespace "$NS-away" create deployment web --image=docker.io/coxswain/web:1 --replicas=2
kubectl --namespace "$NS-away" create secret generic s --from-literal=a=b
kubectl --namespace "$NS-away" rollout status deployment/web --timeout=60s
kubectl delete namespace "$NS-away" --timeout=60s
refuses NotFound kubectl get namespace "$NS-away"

# A pod too big for every node waits, and says why.
kubectl run huge --image=docker.io/library/busybox:1 --overrides='{"spec":{"containers":[{"name":"huge","image":"docker.io/library/busybox:1","resources":{"requests":{"cpu":"1000"}}}]}}'
eventually 20 says 'Insufficient cpu' kubectl describe pod huge
