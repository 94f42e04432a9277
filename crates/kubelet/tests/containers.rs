//! The kubelet against a real containerd: pods start, restart, are probed, mounted, adopted and ended.
//!
//! Needs root, containerd, runc and a static busybox, and fails where they are missing; `COXSWAIN_TEST_WITHOUT_CONTAINERS=1`
//! says that the machine cannot. Names of scenarios given as arguments select them.

#![allow(clippy::unwrap_used, reason = "a test program with a main of its own")]

#[path = "support/admission.rs"]
mod admission;
#[path = "support/resize.rs"]
mod resize;
mod support;

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use serde_json::{Value, json};
use tokio::time::Instant;

use admission::the_first_of_two_is_taken_on;
use resize::{a_deferred_resize_gets_the_room_of_others, pods_are_resized_in_place};
use support::machine::{IMAGE, Machine, NODE, PAUSE, eventually};

const SOON: Duration = Duration::from_secs(20);
const LIMIT: Duration = Duration::from_secs(120);

type Scenario = (&'static str, for<'a> fn(&'a Machine) -> LocalBoxFuture<'a, ()>);

macro_rules! scenarios {
    ($($name:ident),* $(,)?) => {
        &[$((stringify!($name), (|machine| $name(machine).boxed_local()) as for<'a> fn(&'a Machine) -> LocalBoxFuture<'a, ()>)),*]
    };
}

const TOGETHER: &[Scenario] = scenarios![
    the_node_is_ready_at_once,
    resources_told_by_others_are_given_out,
    a_pod_runs_and_is_deleted,
    jobs_succeed_and_fail,
    crashes_back_off,
    init_containers_and_sidecars,
    environment_and_volumes,
    probes,
    missing_things_are_named_and_mended,
    termination_is_graceful,
    deadlines_end_pods,
    users_and_groups,
    lost_sandboxes_are_replaced,
    memory_limits_hold,
    a_new_image_is_not_seen_halfway,
    images_are_volumes,
    the_first_of_two_is_taken_on,
];

/// Measure, or disturb everybody else.
const ALONE: &[Scenario] = scenarios![
    pods_are_resized_in_place,
    a_deferred_resize_gets_the_room_of_others,
    one_pod_is_quick,
    many_pods_at_once,
    many_short_lives,
    containers_outlive_the_kubelet,
    the_runtime_may_die
];

fn main() {
    if std::env::var_os("COXSWAIN_TEST_WITHOUT_CONTAINERS").is_some() {
        return eprintln!("containers: not run, since this machine was said to be unable to");
    }
    assert!(nix::unistd::geteuid().is_root(), "the tests against containerd need root");
    if let Some(filter) = std::env::var_os("RUST_LOG") {
        tracing_subscriber::fmt()
            .with_env_filter(filter.to_string_lossy().into_owned())
            .with_writer(std::io::stderr)
            .init();
    }
    let chosen: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |name: &str| chosen.is_empty() || chosen.iter().any(|part| name.contains(part.as_str()));
    let runtime = tokio::runtime::Runtime::new().expect("a tokio runtime");
    let failed = tokio::task::LocalSet::new().block_on(&runtime, async {
        let machine = Machine::start().await;
        let together = TOGETHER.iter().filter(|(name, _)| wanted(name)).map(|scenario| run(&machine, scenario));
        let mut failed: usize = futures::future::join_all(together).await.into_iter().sum();
        for scenario in ALONE.iter().filter(|(name, _)| wanted(name)) {
            failed += run(&machine, scenario).await;
        }
        machine.tear_down().await;
        failed
    });
    assert!(failed == 0, "{failed} scenarios failed");
}

async fn run(machine: &Machine, (name, scenario): &Scenario) -> usize {
    let begun = Instant::now();
    let result = tokio::time::timeout(LIMIT, AssertUnwindSafe(scenario(machine)).catch_unwind()).await;
    let word = match &result {
        Ok(Ok(())) => "ok",
        Ok(Err(_)) => "FAILED",
        Err(_) => "TIMED OUT",
    };
    println!("containers::{name} ... {word} ({:?})", begun.elapsed());
    usize::from(word != "ok")
}

fn container(name: &str, script: &str) -> Value {
    json!({"name": name, "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script]})
}

/// Ends at once when told to.
const FOREVER: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

/// A shell that has only just started needs a moment until it would notice a signal.
async fn trap_set() {
    tokio::time::sleep(Duration::from_millis(500)).await;
}

fn phase(machine: &Machine, name: &str) -> String {
    let pod = machine.pod(name).unwrap_or_default();
    pod["status"]["phase"].as_str().unwrap_or("gone").to_owned()
}

async fn in_phase(machine: &Machine, name: &str, wanted: &str) -> Value {
    eventually(&format!("{name} becomes {wanted}"), SOON, || match machine.pod(name) {
        Some(pod) if pod["status"]["phase"] == wanted => Ok(pod),
        Some(pod) => Err(pod["status"].to_string()),
        None => Err("gone".to_owned()),
    })
    .await
}

async fn gone(machine: &Machine, name: &str, limit: Duration) {
    eventually(&format!("{name} goes"), limit, || match machine.pod(name) {
        Some(pod) => Err(pod.to_string()),
        None => Ok(()),
    })
    .await;
}

fn condition(pod: &Value, kind: &str) -> String {
    let list = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = list.into_iter().find(|condition| condition["type"] == kind).unwrap_or_default();
    format!("{}/{}", found["status"].as_str().unwrap_or_default(), found["reason"].as_str().unwrap_or_default())
}

async fn the_node_is_ready_at_once(machine: &Machine) {
    let node = eventually("the node is ready", Duration::from_secs(5), || {
        let node = machine.api.get("nodes", "", NODE).ok_or("no node")?;
        if condition(&node, "Ready") == "True/KubeletReady" { Ok(node) } else { Err(node.to_string()) }
    })
    .await;
    assert_eq!(node["metadata"]["labels"]["kubernetes.io/hostname"], NODE);
    assert!(node["status"]["nodeInfo"]["containerRuntimeVersion"].as_str().unwrap().starts_with("containerd://"));
    eventually("the lease", SOON, || machine.api.get("leases", "kube-node-lease", NODE).ok_or("none".to_owned())).await;
}

async fn resources_told_by_others_are_given_out(machine: &Machine) {
    let ready = |node: &Value| condition(node, "Ready") == "True/KubeletReady";
    eventually("the node is ready", SOON, || {
        machine.api.get("nodes", "", NODE).filter(ready).map(drop).ok_or("no".to_owned())
    })
    .await;
    let allocatable = |wanted: Value| {
        move || {
            let node = machine.api.get("nodes", "", NODE).ok_or("no node")?;
            let (have, told) = (&node["status"]["allocatable"], &node["status"]["capacity"]);
            let name = "example.com/dongle";
            if have[name] == wanted && told[name] == wanted { Ok(()) } else { Err(node["status"].to_string()) }
        }
    };
    for amount in [json!("5"), json!("2"), Value::Null] {
        let mut node = machine.api.get("nodes", "", NODE).unwrap();
        node["status"]["capacity"]["example.com/dongle"] = amount.clone();
        if amount.is_null() {
            node["status"]["capacity"].as_object_mut().unwrap().remove("example.com/dongle");
        }
        machine.api.put("nodes", node);
        // Sooner than the next look that would come by itself.
        eventually("allocatable", Duration::from_secs(3), allocatable(amount)).await;
    }
}

async fn a_pod_runs_and_is_deleted(machine: &Machine) {
    machine.create(
        "plain",
        json!({"containers": [container("a", &format!("echo hello; {FOREVER}")), container("b", FOREVER)]}),
    );
    let pod = in_phase(machine, "plain", "Running").await;
    let status = &pod["status"];
    assert_eq!(status["containerStatuses"].as_array().unwrap().len(), 2);
    assert!(status["containerStatuses"][0]["containerID"].as_str().unwrap().starts_with("containerd://"));
    assert!(status["podIP"].as_str().unwrap().starts_with("10.42."), "{status}");
    assert_eq!(
        (condition(&pod, "Ready").as_str(), condition(&pod, "PodReadyToStartContainers").as_str()),
        ("True/", "True/")
    );
    let record = machine.store().get("default", "plain").unwrap();
    let log = std::fs::read_to_string(&record.container("a").unwrap().log_path).unwrap();
    assert!(log.ends_with(" stdout F hello\n"), "{log:?}");
    let events = machine.events("plain").join("\n");
    for words in ["Pulled Container image \"test.local/busybox:1\" already present on machine", "Created ", "Started "]
    {
        assert!(events.contains(words), "{words} not in {events}");
    }
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    trap_set().await;
    machine.api.delete("pods", "default", "plain", 30);
    let begun = Instant::now();
    gone(machine, "plain", SOON).await;
    println!("  deleted within {:?}", begun.elapsed());
    assert!(machine.events("plain").join("\n").contains("Killing Stopping container a"));
    let filter = [("io.kubernetes.pod.uid", uid)];
    let mut left = 1;
    for _ in 0..200 {
        left = machine.runtime.list_pod_sandboxes(&filter).await.unwrap().len();
        left += usize::from(machine.dir.path().join("kubelet/pods").join(uid).exists());
        if left == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(left, 0, "traces are left");
}

async fn jobs_succeed_and_fail(machine: &Machine) {
    machine.create("good", json!({"restartPolicy": "Never", "containers": [container("a", "exit 0")]}));
    machine.create(
        "bad",
        json!({"restartPolicy": "Never", "containers": [container("a", "echo why > /dev/termination-log; exit 3")]}),
    );
    let good = in_phase(machine, "good", "Succeeded").await;
    assert_eq!(condition(&good, "Ready"), "False/PodCompleted");
    let bad = in_phase(machine, "bad", "Failed").await;
    let ended = &bad["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(
        (ended["exitCode"].as_i64(), ended["reason"].as_str(), ended["message"].as_str()),
        (Some(3), Some("Error"), Some("why\n"))
    );
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(phase(machine, "good"), "Succeeded", "an ended pod stays");
    machine.api.delete("pods", "default", "good", 1);
    gone(machine, "good", SOON).await;
}

async fn crashes_back_off(machine: &Machine) {
    machine.create("crash", json!({"containers": [container("a", "exit 1")]}));
    let status = eventually("the back-off", SOON, || {
        let pod = machine.pod("crash").ok_or("gone")?;
        let status = pod["status"]["containerStatuses"][0].clone();
        if status["state"]["waiting"]["reason"] == "CrashLoopBackOff" && status["restartCount"] == 2 {
            Ok(status)
        } else {
            Err(status.to_string())
        }
    })
    .await;
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 1);
    assert!(
        status["state"]["waiting"]["message"]
            .as_str()
            .unwrap()
            .starts_with("back-off 2s restarting failed container=a pod=crash_default(")
    );
    assert!(
        machine
            .events("crash")
            .join("\n")
            .contains("BackOff Back-off restarting failed container a in pod crash_default(")
    );
}

async fn init_containers_and_sidecars(machine: &Machine) {
    let mut sidecar = container("side", "trap 'exit 0' TERM; touch /data/side; while :; do sleep 0.1; done");
    sidecar["restartPolicy"] = "Always".into();
    sidecar["startupProbe"] = json!({"exec": {"command": ["test", "-e", "/data/side"]}, "periodSeconds": 1});
    let mut init = container("init", "test -e /data/side && touch /data/init");
    let mut main = container("main", "test -e /data/init");
    for one in [&mut sidecar, &mut init, &mut main] {
        one["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    }
    machine.create(
        "ordered",
        json!({"restartPolicy": "Never", "volumes": [{"name": "data", "emptyDir": {}}],
        "initContainers": [sidecar, init], "containers": [main]}),
    );
    let pod = in_phase(machine, "ordered", "Succeeded").await;
    let side = &pod["status"]["initContainerStatuses"][0]["state"]["terminated"];
    assert_eq!(side["exitCode"], 0, "{side}");
    machine.create("stuck", json!({"restartPolicy": "Never", "initContainers": [container("i", "exit 9")], "containers": [container("m", "")]}));
    let stuck = in_phase(machine, "stuck", "Failed").await;
    assert_eq!(condition(&stuck, "Initialized"), "False/ContainersNotInitialized");
}

async fn environment_and_volumes(machine: &Machine) {
    machine.api.put("configmaps", json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"namespace": "default", "name": "cm"}, "data": {"key": "one"}}));
    machine.api.put("secrets", json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"namespace": "default", "name": "s"}, "data": {"pw": "c2VjcmV0"}}));
    let mut main = container("main", FOREVER);
    main["env"] = json!([
        {"name": "A", "value": "1"}, {"name": "B", "value": "$(A)-$(POD)"},
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "PW", "valueFrom": {"secretKeyRef": {"name": "s", "key": "pw"}}},
    ]);
    main["envFrom"] = json!([{"configMapRef": {"name": "cm"}, "prefix": "CM_"}]);
    main["resources"] = json!({"limits": {"memory": "64Mi", "cpu": "500m"}});
    main["volumeMounts"] = json!([
        {"name": "cm", "mountPath": "/cm"}, {"name": "s", "mountPath": "/s"}, {"name": "mem", "mountPath": "/mem"},
        {"name": "all", "mountPath": "/all"}, {"name": "disk", "mountPath": "/disk", "subPath": "sub/dir"},
        {"name": "host", "mountPath": "/host", "readOnly": true},
    ]);
    let host = machine.dir.path().join("host");
    machine.create_with(
        "volumes",
        json!({"labels": {"app": "x"}}),
        json!({
            "hostname": "h", "subdomain": "sub", "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["alias"]}],
            "containers": [main],
            "volumes": [
                {"name": "cm", "configMap": {"name": "cm", "defaultMode": 256}},
                {"name": "s", "secret": {"secretName": "s"}},
                {"name": "mem", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
                {"name": "disk", "emptyDir": {}},
                {"name": "host", "hostPath": {"path": host, "type": "DirectoryOrCreate"}},
                {"name": "all", "projected": {"sources": [
                    {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
                    {"configMap": {"name": "cm", "items": [{"key": "key", "path": "deep/key"}]}},
                    {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
                ]}},
            ],
        }),
    );
    in_phase(machine, "volumes", "Running").await;
    for (command, expected) in [
        ("echo $A $B $POD $PW $CM_key", "1 1-$(POD) volumes secret one"),
        ("cat /cm/key; stat -L -c %a /cm/key", "one400"),
        ("cat /s/pw; grep -c ' /s tmpfs' /proc/mounts", "secret1"),
        ("cat /all/token /all/deep/key /all/labels", "a-tokenoneapp=\"x\""),
        ("stat -c %a /mem /disk; grep ' /mem ' /proc/mounts | grep -o size=[0-9]*k", "1777\n777\nsize=1024k"),
        ("touch /host/x", "touch: /host/x: Read-only file system"),
        (
            "hostname; tail -n 4 /etc/hosts | grep -o 'alias\\|h.sub.default.svc.cluster.local'",
            "h\nh.sub.default.svc.cluster.local\nalias",
        ),
        (
            "head -n 3 /etc/resolv.conf",
            "search default.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.43.0.10\noptions ndots:5",
        ),
    ] {
        let seen = machine.exec("volumes", "main", command).await;
        let expected = if command.starts_with("stat -c %a /mem") {
            expected.replacen("1777", "777", 1)
        } else {
            expected.to_owned()
        };
        assert_eq!(seen, expected, "{command}");
    }
    machine.api.put("configmaps", json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"namespace": "default", "name": "cm"}, "data": {"key": "two"}}));
    let mut seen = String::new();
    for _ in 0..100 {
        seen = machine.exec("volumes", "main", "cat /cm/key /all/deep/key").await;
        if seen == "twotwo" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(seen, "twotwo", "the change arrives");
}

async fn probes(machine: &Machine) {
    let http = |path: &str| json!({"httpGet": {"path": path, "port": 18931, "host": "127.0.0.1"}, "periodSeconds": 1});
    let mut web = container("web", "mkdir /tmp/w; echo ok > /tmp/w/live; exec httpd -f -p 127.0.0.1:18931 -h /tmp/w");
    web["readinessProbe"] = http("/ready");
    web["livenessProbe"] = http("/live");
    web["livenessProbe"]["failureThreshold"] = 1.into();
    web["livenessProbe"]["initialDelaySeconds"] = 2.into();
    machine.create("probed", json!({"hostNetwork": true, "containers": [web]}));
    let pod = in_phase(machine, "probed", "Running").await;
    assert_eq!(condition(&pod, "Ready"), "False/ContainersNotReady");
    eventually("a failed readiness probe is told", SOON, || {
        let events = machine.events("probed").join("\n");
        if events.contains("Unhealthy Readiness probe failed: HTTP probe failed with statuscode: 404") {
            Ok(())
        } else {
            Err(events)
        }
    })
    .await;
    machine.exec("probed", "web", "echo ok > /tmp/w/ready").await;
    eventually("ready", SOON, || {
        let pod = machine.pod("probed").ok_or("gone")?;
        if condition(&pod, "Ready") == "True/" { Ok(()) } else { Err(pod["status"].to_string()) }
    })
    .await;
    machine.exec("probed", "web", "rm /tmp/w/live").await;
    eventually("restarted", SOON, || {
        let pod = machine.pod("probed").ok_or("gone")?;
        let status = &pod["status"]["containerStatuses"][0];
        if status["restartCount"] == 1 && !status["state"]["running"].is_null() {
            Ok(())
        } else {
            Err(status.to_string())
        }
    })
    .await;
    assert!(
        machine.events("probed").join("\n").contains("Killing Container web failed liveness probe, will be restarted")
    );
}

async fn missing_things_are_named_and_mended(machine: &Machine) {
    let mut main = container("a", FOREVER);
    main["envFrom"] = json!([{"configMapRef": {"name": "later"}}]);
    machine.create("waits", json!({"containers": [main]}));
    let waiting = |name: &'static str, reason: &'static str| {
        move || {
            let pod = machine.pod(name).ok_or("gone")?;
            let waiting = pod["status"]["containerStatuses"][0]["state"]["waiting"].clone();
            if waiting["reason"] == reason { Ok(waiting) } else { Err(pod["status"].to_string()) }
        }
    };
    let why = eventually("the missing map", SOON, waiting("waits", "CreateContainerConfigError")).await;
    assert_eq!(why["message"], "configmap \"later\" not found");
    machine.api.put("configmaps", json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"namespace": "default", "name": "later"}, "data": {}}));
    in_phase(machine, "waits", "Running").await;

    let mut never = container("a", "");
    (never["image"], never["imagePullPolicy"]) = ("test.local/none:1".into(), "Never".into());
    machine.create("never", json!({"containers": [never]}));
    let why = eventually("the missing image", SOON, waiting("never", "ErrImageNeverPull")).await;
    assert_eq!(why["message"], "Container image \"test.local/none:1\" is not present with pull policy of Never");

    let mut no_such = container("a", "");
    no_such["command"] = json!(["/no/such/program"]);
    machine.create("no-such", json!({"containers": [no_such]}));
    let why = eventually("the missing program", SOON, waiting("no-such", "RunContainerError")).await;
    assert!(why["message"].as_str().unwrap().contains("no such file or directory"), "{why}");
}

async fn termination_is_graceful(machine: &Machine) {
    let mut main =
        container("a", "trap 'sleep 0.3; echo term >> /log/order; exit 0' TERM; while :; do sleep 0.05; done");
    main["lifecycle"] = json!({"preStop": {"exec": {"command": ["sh", "-c", "echo prestop >> /log/order"]}},
        "postStart": {"exec": {"command": ["sh", "-c", "echo poststart >> /log/order"]}}});
    let log = machine.dir.path().join("graceful");
    main["volumeMounts"] = json!([{"name": "log", "mountPath": "/log"}]);
    let mut stubborn = container("b", "trap '' TERM; while :; do sleep 0.1; done");
    stubborn["image"] = IMAGE.into();
    machine.create(
        "graceful",
        json!({"terminationGracePeriodSeconds": 2, "containers": [main, stubborn],
        "volumes": [{"name": "log", "hostPath": {"path": log, "type": "DirectoryOrCreate"}}]}),
    );
    in_phase(machine, "graceful", "Running").await;
    machine.api.delete("pods", "default", "graceful", 2);
    let begun = Instant::now();
    gone(machine, "graceful", SOON).await;
    let took = begun.elapsed();
    assert_eq!(std::fs::read_to_string(log.join("order")).unwrap(), "poststart\nprestop\nterm\n");
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(6), "{took:?}");
    // A second word with less time takes effect at once.
    machine.create("hurried", json!({"containers": [container("a", "trap '' TERM; while :; do sleep 0.1; done")]}));
    in_phase(machine, "hurried", "Running").await;
    machine.api.delete("pods", "default", "hurried", 60);
    tokio::time::sleep(Duration::from_millis(300)).await;
    machine.api.delete("pods", "default", "hurried", 1);
    gone(machine, "hurried", Duration::from_secs(8)).await;
}

async fn deadlines_end_pods(machine: &Machine) {
    machine.create("late", json!({"activeDeadlineSeconds": 1, "containers": [container("a", FOREVER)]}));
    let pod = in_phase(machine, "late", "Failed").await;
    assert_eq!(pod["status"]["reason"], "DeadlineExceeded");
}

async fn users_and_groups(machine: &Machine) {
    let mut main = container("a", FOREVER);
    main["volumeMounts"] = json!([{"name": "d", "mountPath": "/d"}]);
    main["securityContext"] = json!({"readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]}});
    machine.create(
        "user",
        json!({"securityContext": {"runAsUser": 1000, "runAsGroup": 3000, "fsGroup": 2000, "runAsNonRoot": true},
        "shareProcessNamespace": true, "containers": [main], "volumes": [{"name": "d", "emptyDir": {}}]}),
    );
    in_phase(machine, "user", "Running").await;
    for (command, expected) in [
        ("id -u; id -g; id -G", "1000\n3000\n3000 2000"),
        ("touch /d/x && stat -c '%u %g' /d/x", "1000 2000"),
        ("touch /x", "touch: /x: Read-only file system"),
        ("grep -c sleep /proc/1/cmdline", "1"),
        ("grep -E 'NoNewPrivs|CapEff' /proc/self/status | tr -d '\\t'", "CapEff:0000000000000000\nNoNewPrivs:1"),
    ] {
        assert_eq!(machine.exec("user", "a", command).await, expected, "{command}");
    }
    let mut root = container("a", "");
    root["securityContext"] = json!({"runAsNonRoot": true});
    machine.create("root", json!({"containers": [root]}));
    eventually("root is refused", SOON, || {
        let pod = machine.pod("root").ok_or("gone")?;
        let text = pod["status"]["containerStatuses"][0]["state"]["waiting"].to_string();
        if text.contains("container has runAsNonRoot and image will run as root") { Ok(()) } else { Err(text) }
    })
    .await;
}

async fn lost_sandboxes_are_replaced(machine: &Machine) {
    let spec = json!({"initContainers": [container("i", "true")], "containers": [container("a", FOREVER)]});
    machine.create("lost", spec);
    let before = in_phase(machine, "lost", "Running").await;
    let sandbox = machine.store().get("default", "lost").unwrap().sandbox_id.clone().unwrap();
    machine.runtime.stop_pod_sandbox(&sandbox).await.unwrap();
    let after = eventually("running in a new sandbox", SOON, || {
        let pod = machine.pod("lost").ok_or("gone")?;
        let status = &pod["status"]["containerStatuses"][0];
        if status["restartCount"].as_i64() >= Some(1) && status["ready"] == true {
            Ok(pod)
        } else {
            Err(pod["status"].to_string())
        }
    })
    .await;
    assert_ne!(before["status"]["podIP"], after["status"]["podIP"]);
    assert_eq!(after["status"]["podIPs"].as_array().unwrap().len(), 1);
    assert_eq!(condition(&after, "Initialized"), "True/");
    assert!(
        machine
            .events("lost")
            .join("\n")
            .contains("SandboxChanged Pod sandbox changed, it will be killed and re-created.")
    );
}

async fn memory_limits_hold(machine: &Machine) {
    let mut greedy = container("a", "tail /dev/zero");
    greedy["resources"] = json!({"limits": {"memory": "20Mi"}});
    machine.create("greedy", json!({"restartPolicy": "Never", "containers": [greedy]}));
    let pod = in_phase(machine, "greedy", "Failed").await;
    assert_eq!(pod["status"]["containerStatuses"][0]["state"]["terminated"]["reason"], "OOMKilled");
}

/// Upstream tells the status before and after it replaces a container, never the moment between.
async fn a_new_image_is_not_seen_halfway(machine: &Machine) {
    let spec = |image: &str| {
        let mut main = container("a", FOREVER);
        main["image"] = image.into();
        json!({"terminationGracePeriodSeconds": 0, "containers": [main]})
    };
    machine.create("renewed", spec(IMAGE));
    in_phase(machine, "renewed", "Running").await;
    let mut changes = machine.api.changes();
    let mut pod = machine.pod("renewed").unwrap();
    pod["spec"]["containers"][0]["image"] = PAUSE.into();
    pod["metadata"]["generation"] = 2.into();
    machine.api.put("pods", pod);
    eventually("the new container", SOON, || {
        let pod = machine.pod("renewed").ok_or("gone")?;
        let status = &pod["status"]["containerStatuses"][0];
        if status["restartCount"] == 1 && status["ready"] == true { Ok(()) } else { Err(pod["status"].to_string()) }
    })
    .await;
    let mut seen = Vec::new();
    while let Ok((resource, event)) = changes.try_recv() {
        if resource == "pods" && event["object"]["metadata"]["name"] == "renewed" {
            seen.push(condition(&event["object"], "ContainersReady"));
        }
    }
    assert!(seen.len() > 1 && seen.iter().all(|ready| ready == "True/"), "{seen:?}");
}

async fn images_are_volumes(machine: &Machine) {
    let mut main = container("a", FOREVER);
    main["volumeMounts"] =
        json!([{"name": "v", "mountPath": "/v"}, {"name": "v", "mountPath": "/sub", "subPath": "bin"}]);
    let volumes = json!([{"name": "v", "image": {"reference": IMAGE, "pullPolicy": "Never"}}]);
    machine.create("image-volume", json!({"containers": [main], "volumes": volumes}));
    let pod = in_phase(machine, "image-volume", "Running").await;
    for (command, expected) in [
        ("cmp /v/bin/busybox /bin/busybox; cmp /sub/busybox /bin/busybox; ls /v", "bin\ndev\netc\nproc\nsys\ntmp"),
        ("touch /v/x", "touch: /v/x: Read-only file system"),
    ] {
        assert_eq!(machine.exec("image-volume", "a", command).await, expected, "{command}");
    }
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    machine.api.delete("pods", "default", "image-volume", 1);
    gone(machine, "image-volume", SOON).await;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(uid), "unmounted");
    let key = format!("coxswain-image-volume/{uid}/v");
    machine.runtime.view_image("test.local/none:1", &key).await.expect_err("an image that is not there");
    let snapshots = std::process::Command::new("ctr")
        .args(["--address", machine.runtime.socket().to_str().unwrap(), "-n", "k8s.io", "snapshots", "ls"])
        .output()
        .unwrap();
    assert!(!String::from_utf8_lossy(&snapshots.stdout).contains(&key), "the view is given back");
}

async fn one_pod_is_quick(machine: &Machine) {
    let mut times = Vec::new();
    for round in 0..5 {
        let name = format!("quick-{round}");
        let begun = Instant::now();
        machine.create(&name, json!({"containers": [container("a", FOREVER)]}));
        in_phase(machine, &name, "Running").await;
        let up = begun.elapsed();
        trap_set().await;
        let begun = Instant::now();
        machine.api.delete("pods", "default", &name, 30);
        gone(machine, &name, SOON).await;
        times.push((up, begun.elapsed()));
    }
    println!("  create to Running, delete to gone: {times:?}");
}

async fn many_pods_at_once(machine: &Machine) {
    const COUNT: u32 = 30;
    let begun = Instant::now();
    for n in 0..COUNT {
        machine.create(&format!("many-{n}"), json!({"containers": [container("a", FOREVER)]}));
    }
    for n in 0..COUNT {
        eventually("running", LIMIT, || {
            if phase(machine, &format!("many-{n}")) == "Running" { Ok(()) } else { Err(format!("{n}")) }
        })
        .await;
    }
    let took = begun.elapsed();
    println!("  {COUNT} pods running after {took:?}: {:.1} pods/s", f64::from(COUNT) / took.as_secs_f64());
    trap_set().await;
    for n in 0..COUNT {
        machine.api.delete("pods", "default", &format!("many-{n}"), 30);
    }
    for n in 0..COUNT {
        gone(machine, &format!("many-{n}"), LIMIT).await;
    }
}

/// Containers whose ends come before the runtime, or their workers, have noted their starts.
async fn many_short_lives(machine: &Machine) {
    const COUNT: u32 = 25;
    for n in 0..COUNT {
        let containers = json!([container("a", "exit 0"), container("b", "exit 0"), container("c", "exit 0")]);
        machine.create(&format!("short-{n}"), json!({"restartPolicy": "Never", "containers": containers}));
    }
    for n in 0..COUNT {
        in_phase(machine, &format!("short-{n}"), "Succeeded").await;
        machine.api.delete("pods", "default", &format!("short-{n}"), 30);
    }
}

async fn containers_outlive_the_kubelet(machine: &Machine) {
    let mut main = container("a", FOREVER);
    main["readinessProbe"] = json!({"exec": {"command": ["true"]}, "periodSeconds": 1});
    machine.create("survivor", json!({"containers": [main]}));
    machine.create("orphan", json!({"containers": [container("a", FOREVER)]}));
    machine.create("ends", json!({"restartPolicy": "Never", "containers": [container("a", "sleep 1; exit 4")]}));
    let ready = || {
        let pod = machine.pod("survivor").ok_or("gone")?;
        if condition(&pod, "Ready") == "True/" { Ok(pod) } else { Err(pod["status"].to_string()) }
    };
    let before = eventually("ready", SOON, ready).await;
    in_phase(machine, "orphan", "Running").await;
    let orphan = machine.pod("orphan").unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
    machine.stop_kubelet().await;
    machine.api.delete("pods", "default", "orphan", 0);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    machine.start_kubelet();
    in_phase(machine, "ends", "Failed").await;
    eventually("the store knows the pod", SOON, || {
        machine.store().get("default", "survivor").map(drop).ok_or("no".to_owned())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let after = ready().expect("still ready");
    assert_eq!(before["status"]["containerStatuses"], after["status"]["containerStatuses"]);
    let filter = [("io.kubernetes.pod.uid", orphan.as_str())];
    for _ in 0..100 {
        if machine.runtime.list_pod_sandboxes(&filter).await.unwrap().is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the orphan is left");
}

async fn the_runtime_may_die(machine: &Machine) {
    machine.create("steady", json!({"containers": [container("a", FOREVER)]}));
    let before = in_phase(machine, "steady", "Running").await;
    machine.restart_containerd().await;
    machine.create("after", json!({"containers": [container("a", FOREVER)]}));
    in_phase(machine, "after", "Running").await;
    let after = machine.pod("steady").unwrap();
    assert_eq!(before["status"]["containerStatuses"], after["status"]["containerStatuses"]);
    // Events flow again.
    machine.runtime.stop_container(&machine.id_of("steady", "a"), Duration::ZERO).await.unwrap();
    eventually("restarted", SOON, || {
        let pod = machine.pod("steady").ok_or("gone")?;
        if pod["status"]["containerStatuses"][0]["restartCount"] == 1 { Ok(()) } else { Err(pod["status"].to_string()) }
    })
    .await;
}
