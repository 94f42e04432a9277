//! Nothing acknowledged is lost: not to a full disk, a kill, or a restart.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc::{self, UnboundedSender};

use crate::support::{CONFIG_MAPS, Client, Site, config_map, names, until};

const KIB: usize = 1024;

#[test]
fn a_full_disk() {
    let site = Site::new();
    site.small_disk(8 << 20);
    let server = site.start_api();
    let filler = site.data().join("filler");
    fs::write(&filler, vec![0; 3 << 20]).unwrap();
    let client = site.connect();
    let post = |name: &str| site.block_on(client.post(CONFIG_MAPS, &config_map(name, 100 * KIB)));

    let mut acknowledged = Vec::new();
    let (status, refusal) = loop {
        let name = format!("a{}", acknowledged.len());
        match post(&name) {
            (201, _) => acknowledged.push(name),
            refused => break refused,
        }
        assert!(acknowledged.len() < 100, "the disk is not that large");
    };
    assert!(matches!(status, 500 | 507), "{refusal}");
    assert_eq!((refusal["kind"].as_str(), refusal["status"].as_str()), (Some("Status"), Some("Failure")));
    let message = refusal["message"].as_str().unwrap();
    assert!(message.contains("no space left on the device"), "{message}");
    // What there is can still be read, and what was refused is not there.
    let listed = || names(&site.block_on(client.get(CONFIG_MAPS))).into_iter().filter(|n| n.starts_with('a'));
    assert!(listed().collect::<HashSet<_>>() == acknowledged.iter().cloned().collect());

    fs::remove_file(&filler).unwrap();
    until("recovery", || (post("after").0 == 201).then_some(()));
    acknowledged.push("after".to_owned());
    assert!(server.stop().0.success());
    let _server = site.start_api();
    let client = site.connect();
    let found: HashSet<String> = names(&site.block_on(client.get(CONFIG_MAPS))).into_iter().collect();
    assert!(acknowledged.iter().all(|name| found.contains(name)), "{acknowledged:?} but {found:?}");
}

/// Creates config maps until the server goes away, and tells of those that it acknowledged.
async fn write_until_killed(client: Client, prefix: String, acknowledged: UnboundedSender<String>) {
    for n in 0.. {
        let name = format!("{prefix}-{n}");
        match client.call("POST", CONFIG_MAPS, Some(&config_map(&name, KIB))).await {
            Ok((201, _)) => acknowledged.send(name).unwrap(),
            Ok((status, answer)) => panic!("{status}: {answer}"),
            Err(_) => return,
        }
    }
}

#[test]
fn killed_while_writing() {
    let site = Site::new();
    let mut acknowledged = HashSet::new();
    for round in 0..5 {
        let server = site.start_api();
        let client = site.connect();
        let found: HashSet<String> = names(&site.block_on(client.get(CONFIG_MAPS))).into_iter().collect();
        assert!(acknowledged.is_subset(&found), "lost: {:?}", acknowledged.difference(&found));
        let written = site.block_on(async {
            let (tell, mut told) = mpsc::unbounded_channel();
            for writer in 0..8 {
                tokio::spawn(write_until_killed(client.clone(), format!("w{round}-{writer}"), tell.clone()));
            }
            drop(tell);
            let mut written = Vec::new();
            told.recv_many(&mut written, 1).await;
            // Somewhere in the middle of the following writes.
            tokio::time::sleep(Duration::from_millis(31 * round)).await;
            server.kill();
            while told.recv_many(&mut written, 64).await > 0 {}
            written
        });
        acknowledged.extend(written);
    }
}

#[test]
fn a_restart_keeps_everything() {
    let site = Site::new();
    let kinds =
        [CONFIG_MAPS, "/api/v1/namespaces", "/apis/rbac.authorization.k8s.io/v1/clusterroles", "/api/v1/services"];
    let state = |client: &Client| -> Vec<Value> {
        kinds.iter().map(|path| site.block_on(client.get(path))["items"].take()).collect()
    };
    let server = site.start_api();
    let client = site.connect();
    assert_eq!(site.block_on(client.post(CONFIG_MAPS, &config_map("kept", 10))).0, 201);
    // Controllers are still making what every cluster has.
    let before = until("rest", || {
        let seen = state(&client);
        std::thread::sleep(Duration::from_millis(300));
        (seen == state(&client)).then_some(seen)
    });
    let kubeconfig = fs::metadata(server.data.join("kubeconfig.yaml")).unwrap();
    assert!(server.stop().0.success());
    let server = site.start_api();
    let client = site.connect();
    assert_eq!(before, state(&client));
    let again = fs::metadata(server.data.join("kubeconfig.yaml")).unwrap();
    assert_eq!((kubeconfig.ino(), kubeconfig.mtime_nsec()), (again.ino(), again.mtime_nsec()));
}
