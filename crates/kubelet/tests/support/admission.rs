//! Which pods the node takes on.

use std::time::Duration;

use serde_json::json;

use super::support::machine::{IMAGE, Machine, eventually};

/// Of two pods that cannot both be here the one that came first stays, and only the other is rejected.
pub async fn the_first_of_two_is_taken_on(machine: &Machine) {
    const PAIRS: u16 = 8;
    // Once the kubelet follows what comes: what was there before it looked comes in no order.
    machine.create("early", json!({"containers": [{"name": "a", "image": IMAGE, "command": ["sleep", "1000"]}]}));
    eventually("a pod runs", Duration::from_secs(60), || {
        let phase = machine.pod("early").unwrap_or_default()["status"]["phase"].to_string();
        if phase == "\"Running\"" { Ok(()) } else { Err(phase) }
    })
    .await;
    machine.api.delete("pods", "default", "early", 0);
    let names = |n: u16| (format!("port-{n}-a"), format!("port-{n}-b"));
    for n in 0..PAIRS {
        let ports = json!([{"containerPort": 80, "hostPort": 21_000 + n}]);
        let main = json!({"name": "a", "image": IMAGE, "command": ["sleep", "1000"], "ports": ports});
        let (first, second) = names(n);
        // The name that sorts last comes first now and then: it is the arrival that counts.
        let order = if n % 2 == 0 { [&first, &second] } else { [&second, &first] };
        for name in order {
            machine.create(name, json!({"terminationGracePeriodSeconds": 0, "containers": [main]}));
        }
    }
    for n in 0..PAIRS {
        let (a, b) = names(n);
        let (first, second) = if n % 2 == 0 { (a, b) } else { (b, a) };
        eventually("the first runs and the second is rejected", Duration::from_secs(60), || {
            let status = |name: &str| machine.pod(name).unwrap_or_default()["status"].clone();
            let (kept, rejected) = (status(&first), status(&second));
            let right =
                kept["phase"] == "Running" && rejected["phase"] == "Failed" && rejected["reason"] == "NodePorts";
            if right { Ok(()) } else { Err(format!("{first} {}, {second} {}", kept["phase"], rejected["phase"])) }
        })
        .await;
        for name in [first, second] {
            machine.api.delete("pods", "default", &name, 0);
        }
    }
}
