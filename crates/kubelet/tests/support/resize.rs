//! Scenarios of pods that are resized while they run.

use serde_json::{Value, json};

use super::support::machine::{Machine, eventually};
use super::{FOREVER, SOON, container, gone, in_phase};

/// Sets the first container's requests and limits in the spec, as a write of the `resize` subresource does.
fn resize(machine: &Machine, name: &str, resources: &Value) {
    let mut pod = machine.pod(name).unwrap();
    pod["spec"]["containers"][0]["resources"] = resources.clone();
    pod["metadata"]["generation"] = (pod["metadata"]["generation"].as_i64().unwrap() + 1).into();
    machine.api.put("pods", pod);
}

/// Waits until the status has these resources and conditions of a resize; returns the restart count.
async fn resized(machine: &Machine, name: &str, resources: &Value, conditions: &str) -> i64 {
    eventually("resized", SOON, || {
        let pod = machine.pod(name).ok_or("gone")?;
        let status = &pod["status"]["containerStatuses"][0];
        let words = pod["status"]["conditions"].as_array().into_iter().flatten().filter_map(|condition| {
            let kind = condition["type"].as_str()?.strip_prefix("PodResize")?;
            Some(format!("{kind}/{}", condition["reason"].as_str().unwrap_or_default()))
        });
        let words: Vec<String> = words.collect();
        let done = status["resources"] == *resources && words.join(" ") == conditions && status["ready"] == true;
        if done { Ok(status["restartCount"].as_i64().unwrap()) } else { Err(pod["status"].to_string()) }
    })
    .await
}

pub async fn pods_are_resized_in_place(machine: &Machine) {
    let sized = |cpu: &str, memory: &str| json!({"limits": {"cpu": cpu, "memory": memory}, "requests": {"cpu": cpu, "memory": memory}});
    let mut main = container("a", FOREVER);
    main["resources"] = sized("100m", "32Mi");
    main["resizePolicy"] = json!([{"resourceName": "memory", "restartPolicy": "NotRequired"}]);
    machine.create("resized", json!({"containers": [main, container("b", FOREVER)]}));
    let restarts = resized(machine, "resized", &sized("100m", "32Mi"), "").await;
    assert_eq!(restarts, 0);
    const READ: &str = "cd /sys/fs/cgroup; if [ -f cgroup.controllers ]; then cut -d' ' -f1 cpu.max; cat memory.max; \
        else cat cpu/cpu.cfs_quota_us memory/memory.limit_in_bytes; fi";
    for (cpu, memory, expected) in
        [("200m", "64Mi", "20000\n67108864"), ("50m", "64Mi", "5000\n67108864"), ("150m", "16Mi", "15000\n16777216")]
    {
        resize(machine, "resized", &sized(cpu, memory));
        assert_eq!(resized(machine, "resized", &sized(cpu, memory), "").await, 0, "{cpu} {memory}");
        assert_eq!(machine.exec("resized", "a", READ).await, expected);
    }
    let now = sized("150m", "16Mi");
    // More than the node has, then less than the container uses.
    resize(machine, "resized", &sized("10000", "16Mi"));
    resized(machine, "resized", &now, "Pending/Infeasible").await;
    resize(machine, "resized", &sized("150m", "8Ki"));
    resized(machine, "resized", &now, "InProgress/Error").await;
    // What is allocated survives the kubelet; what is wanted is taken up again.
    machine.stop_kubelet().await;
    machine.start_kubelet();
    resize(machine, "resized", &sized("160m", "32Mi"));
    assert_eq!(resized(machine, "resized", &sized("160m", "32Mi"), "").await, 0);
    assert!(machine.exec("resized", "a", READ).await.starts_with("16000"));

    let mut main = container("a", FOREVER);
    main["resources"] = sized("100m", "32Mi");
    main["resizePolicy"] = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
    machine.create("restarted", json!({"containers": [main]}));
    resized(machine, "restarted", &sized("100m", "32Mi"), "").await;
    resize(machine, "restarted", &sized("100m", "48Mi"));
    assert_eq!(resized(machine, "restarted", &sized("100m", "48Mi"), "").await, 1);
    assert!(machine.exec("restarted", "a", READ).await.ends_with("50331648"));
    assert!(machine.events("restarted").join("\n").contains("Killing Container a resize requires restart"));
}

/// A resize that waits for room gets it when another pod goes.
pub async fn a_deferred_resize_gets_the_room_of_others(machine: &Machine) {
    let cpus = std::thread::available_parallelism().unwrap().get();
    let asks = |milli: usize| json!({"requests": {"cpu": format!("{milli}m")}});
    for name in ["deferred", "in-the-way"] {
        let mut main = container("a", FOREVER);
        main["resources"] = asks(cpus * 400);
        machine.create(name, json!({"containers": [main]}));
        in_phase(machine, name, "Running").await;
    }
    resize(machine, "deferred", &asks(cpus * 800));
    resized(machine, "deferred", &asks(cpus * 400), "Pending/Deferred").await;
    machine.api.delete("pods", "default", "in-the-way", 1);
    assert_eq!(resized(machine, "deferred", &asks(cpus * 800), "").await, 0);
    machine.api.delete("pods", "default", "deferred", 1);
    gone(machine, "deferred", SOON).await;
}
