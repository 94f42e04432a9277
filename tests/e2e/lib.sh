# Sourced by every scenario. The scenario's own namespace is the default one; $NS is its name.

# eventually SECONDS COMMAND…: until it succeeds.
eventually() {
  _until=$(($(date +%s) + $1)); shift
  until _out=$("$@" 2>&1); do
    if [ "$(date +%s)" -ge "$_until" ]; then echo "never succeeded: $*"; echo "$_out"; kubectl get pods,events -o wide || true; exit 1; fi
    sleep 0.1
  done
}

# says TEXT COMMAND…: the output contains TEXT.
says() {
  _want=$1; shift
  _out=$("$@" 2>&1) || { echo "failed: $*"; echo "$_out"; return 1; }
  case $_out in *"$_want"*) ;; *) echo "wanted '$_want' from: $*"; echo "$_out"; return 1 ;; esac
}

# refuses TEXT COMMAND…: the command fails and says TEXT.
refuses() {
  _want=$1; shift
  if _out=$("$@" 2>&1); then echo "should have failed: $*"; echo "$_out"; return 1; fi
  case $_out in *"$_want"*) ;; *) echo "wanted '$_want' from: $*"; echo "$_out"; return 1 ;; esac
}

# is VALUE COMMAND…: the output is exactly VALUE.
is() {
  _want=$1; shift
  _out=$("$@" 2>&1) || { echo "failed: $*"; echo "$_out"; return 1; }
  [ "$_out" = "$_want" ] || { echo "wanted '$_want', got '$_out' from: $*"; return 1; }
}

ready() { kubectl wait --for=condition=Ready "$@" --timeout=60s; }
