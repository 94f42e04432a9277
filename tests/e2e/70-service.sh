# A pod reaches another by cluster IP and by name; NodePort answers on the node; endpoints follow.
. ./lib.sh
kubectl create deployment web --image=docker.io/coxswain/web:1 --replicas=2
kubectl expose deployment web --port=80
kubectl expose deployment web --name=door --type=NodePort --port=80
kubectl create service clusterip headless --clusterip=None --tcp=80
kubectl patch service headless -p '{"spec":{"selector":{"app":"web"}}}'
kubectl run client --image=docker.io/coxswain/tools:1 -- sleep 3600
kubectl rollout status deployment/web --timeout=60s
ready pod/client
from() { kubectl exec client -- "$@"; }
ip=$(kubectl get service web -o jsonpath='{.spec.clusterIP}')
eventually 20 from curl -sf -m 2 "http://$ip/"
eventually 20 from curl -sf -m 2 http://web/
from curl -sf -m 2 "http://web.$NS/"
from curl -sf -m 2 "http://web.$NS.svc.cluster.local/"
says "$ip" from nslookup "web.$NS.svc.cluster.local"
for pod_ip in $(kubectl get pods -l app=web -o jsonpath='{.items[*].status.podIP}'); do
  says "$pod_ip" from nslookup "headless.$NS.svc.cluster.local"
  from curl -sf -m 2 "http://$pod_ip/"
done
says 'kubernetes.default' from nslookup kubernetes.default.svc.cluster.local

# Both pods answer.
seen() { for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do from curl -sf -m 2 http://web/; done | sort -u | wc -l | tr -d ' '; }
is 2 seen

port=$(kubectl get service door -o jsonpath='{.spec.ports[0].nodePort}')
eventually 20 curl -sf -m 2 "http://$NODE_IP:$port/"
curl -sf -m 2 "http://$NODE_IP:$port/"

# Session affinity keeps a client at one pod.
kubectl patch service web -p '{"spec":{"sessionAffinity":"ClientIP"}}'
sleep 1
is 1 seen
kubectl patch service web -p '{"spec":{"sessionAffinity":"None"}}'

# No endpoints: refused at once, not timed out.
kubectl scale deployment web --replicas=0
eventually 30 is '' kubectl get endpoints web -o jsonpath='{.subsets[*].addresses[*].ip}'
sleep 0.5
refuses 'curl: (7)' from curl -sS -m 5 "http://$ip/"
