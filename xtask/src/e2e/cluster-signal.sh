# cluster-signal WHICH SIGNAL: server, or node-N; returns when the process is gone.
pid=$(cat "$WORK/$1.pid")
kill "-$2" "$pid"
while kill -0 "$pid" 2>/dev/null && ! grep -q '^State:.Z' "/proc/$pid/status"; do sleep 0.05; done
