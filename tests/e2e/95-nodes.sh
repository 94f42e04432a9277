# A second machine joins: pods and services reach across, its kubelet serves logs and exec, it restarts without a token, and it leaves.
. ./lib.sh
cluster-join 2
says 'node-2' kubectl get nodes
is 'True True' kubectl get nodes -o jsonpath='{.items[*].status.conditions[?(@.type=="Ready")].status}'
is '10.42.0.0/24 10.42.1.0/24' kubectl get nodes --sort-by=.metadata.name -o jsonpath='{.items[*].spec.podCIDR}'
# Certificates were asked for by the API, and given.
says 'kubernetes.io/kubelet-serving' kubectl get csr
is '' sh -c 'kubectl get csr --no-headers | grep -v Approved,Issued || true'

on() { # on NODE NAME IMAGE COMMAND…
  _node=$1; _name=$2; _image=$3; shift 3
  kubectl run "$_name" --image="$_image" --labels="app=$_name" \
    --overrides="{\"spec\":{\"nodeSelector\":{\"kubernetes.io/hostname\":\"$_node\"},\"terminationGracePeriodSeconds\":1}}" -- "$@"
}
on node-1 near docker.io/coxswain/web:1 /web
on node-2 far docker.io/coxswain/web:1 /web
on node-1 here docker.io/coxswain/tools:1 sleep 3600
on node-2 there docker.io/coxswain/tools:1 sleep 3600
ready pod/near pod/far pod/here pod/there
is node-2 kubectl get pod far -o jsonpath='{.spec.nodeName}'
address() { kubectl get pod "$1" -o jsonpath='{.status.podIP}'; }
is far kubectl exec here -- curl -sf -m 2 "http://$(address far)/"
is near kubectl exec there -- curl -sf -m 2 "http://$(address near)/"

kubectl expose pod near --port=80
kubectl expose pod far --port=80 --type=NodePort
eventually 20 is far kubectl exec here -- curl -sf -m 2 http://far/
eventually 20 is near kubectl exec there -- curl -sf -m 2 "http://near.$NS.svc.cluster.local/"
port=$(kubectl get service far -o jsonpath='{.spec.ports[0].nodePort}')
is far curl -sf -m 2 "http://$NODE_IP:$port/"
is far curl -sf -m 2 "http://192.168.77.3:$port/"

# The API server reaches the agent's kubelet, whose certificate it verifies.
kubectl run teller --image=docker.io/library/busybox:1 --overrides='{"spec":{"nodeName":"node-2"}}' --restart=Never -- echo said on node-2
eventually 20 is Succeeded kubectl get pod teller -o jsonpath='{.status.phase}'
is 'said on node-2' kubectl logs teller
says '"nodeName":"node-2"' kubectl get --raw /api/v1/nodes/node-2/proxy/stats/summary

# The agent dies and comes back: nothing is restarted, and no token is needed.
state() { kubectl get pods far there -o jsonpath='{.items[*].status.containerStatuses[0].containerID}'; }
before=$(state)
cluster-kill node-2
is far kubectl exec here -- curl -sf -m 2 "http://$(address far)/"
cluster-rejoin 2
eventually 20 is far kubectl exec far -- cat /tmp/www/index.html
is "$before" state

# A drained node is empty; what a controller owns comes up elsewhere.
kubectl create deployment moved --image=docker.io/coxswain/web:1 --replicas=3
kubectl rollout status deployment/moved --timeout=60s
kubectl drain node-2 --force --ignore-daemonsets --delete-emptydir-data --timeout=60s
eventually 30 is 3 kubectl get deployment moved -o jsonpath='{.status.readyReplicas}'
is '' kubectl get pods --field-selector spec.nodeName=node-2 -o name
cluster-leave 2
is '' sh -c 'kubectl get nodes -o name | grep node-2 || true'
