# Logs, exec, attach, cp, port-forward.
. ./lib.sh
kubectl run chatty --image=docker.io/library/busybox:1 --image-pull-policy=IfNotPresent --restart=Always -- \
  sh -c 'echo first line; sleep 0.2; echo to stderr >&2; i=0; while [ $i -lt 1000 ]; do echo tick $i; i=$((i+1)); sleep 0.2; done'
ready pod/chatty
eventually 10 says 'first line' kubectl logs chatty
eventually 10 says 'to stderr' kubectl logs chatty
is 'first line' sh -c 'kubectl logs chatty | head -1'
eventually 10 says 'tick' kubectl logs chatty --tail=1 --timestamps
says 'tick' kubectl logs chatty --tail=1 --insecure-skip-tls-verify-backend
timeout 3 kubectl logs -f chatty > follow.$$ || [ $? = 124 ]
[ "$(grep -c tick follow.$$)" -ge 5 ] || { echo 'logs -f did not follow'; exit 1; }
rm -f follow.$$

is hello kubectl exec chatty -- echo hello
is chatty kubectl exec chatty -- hostname
is 'from stdin' sh -c 'echo "from stdin" | kubectl exec -i chatty -- cat'
kubectl exec chatty -- sh -c 'exit 7' && exit 1 || [ $? = 7 ]
# A terminal: the program sees one, and its output comes back through it.
says '/dev/pts' script -qec 'kubectl exec -it chatty -- sh -c "readlink /proc/self/fd/0"' /dev/null
says 'tick' sh -c 'timeout -s KILL 2 kubectl attach chatty; true'

echo payload > up.$$
kubectl cp up.$$ "chatty:/tmp/up"
is payload kubectl exec chatty -- cat /tmp/up
kubectl cp "chatty:/tmp/up" down.$$
cmp up.$$ down.$$
rm -f up.$$ down.$$

# The log of the container before the last restart.
kubectl run brief --image=docker.io/library/busybox:1 --image-pull-policy=IfNotPresent --restart=Always -- \
  sh -c 'echo life of $(cat /proc/sys/kernel/random/uuid); sleep 1; exit 1'
eventually 30 kubectl logs brief --previous
says 'life of' kubectl logs brief --previous

kubectl run web --image=docker.io/coxswain/web:1 --port=80
ready pod/web
kubectl port-forward pod/web 18080:80 > /dev/null 2>&1 &
forward=$!
eventually 15 is web curl -sf http://127.0.0.1:18080/
is web curl -sf http://127.0.0.1:18080/
kill $forward
