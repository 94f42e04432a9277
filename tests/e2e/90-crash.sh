# kill -9 of the daemon: nothing acknowledged is lost, containers keep running, the node adopts them.
. ./lib.sh
# Pods of earlier scenarios take their grace to go; here, all that runs on the node is compared.
others() { kubectl get pods --all-namespaces --no-headers 2>/dev/null | grep -v "^$NS " || true; }
eventually 60 is '' others
kubectl create deployment web --image=docker.io/coxswain/web:1 --replicas=2
kubectl rollout status deployment/web --timeout=60s
state() { kubectl get pods -l app=web -o jsonpath='{range .items[*]}{.metadata.uid} {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}{"\n"}{end}' | sort; }
before=$(state)
pids() { ctr --address "$CONTAINERD" --namespace k8s.io tasks list --quiet | sort; }
running=$(pids)
i=0
while [ $i -lt 20 ]; do kubectl create configmap "acknowledged-$i" --from-literal=n=$i > /dev/null; i=$((i+1)); done
cluster-kill
is "$running" pids
cluster-start
eventually 20 kubectl get --raw /readyz
i=0
while [ $i -lt 20 ]; do is $i kubectl get configmap "acknowledged-$i" -o jsonpath='{.data.n}'; i=$((i+1)); done
eventually 20 is "$before" state
sleep 2
is "$before" state
is "$running" pids
kubectl scale deployment web --replicas=3
kubectl rollout status deployment/web --timeout=60s
is ok kubectl exec "$(kubectl get pods -l app=web -o name | head -1)" -- echo ok
# A clean stop leaves them running too.
cluster-stop
eventually 5 sh -c "ctr --address $CONTAINERD --namespace k8s.io tasks list | grep -q RUNNING"
cluster-start
eventually 20 kubectl get --raw /readyz
eventually 20 is 3 kubectl get deployment web -o jsonpath='{.status.readyReplicas}'
