//! Backups of the embedded store: of a server that runs and of one that does not, restored, by schedule, and damaged.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;

use crate::support::{CONFIG_MAPS, Site, config_map, names, until};

fn list(site: &Site, data: &str) -> (i32, Vec<Value>) {
    let (code, output, _) = site.run(&["snapshot", "list", "--data-dir", data, "-o", "json"]);
    (code, serde_json::from_str(&output).unwrap())
}

#[test]
fn saved_while_running_and_restored() {
    let site = Site::new();
    let data = site.data().display().to_string();
    let snapshot = |words: &[&str]| site.run(&[&["snapshot", words[0], "--data-dir", &data], &words[1..]].concat());
    let server = site.start_api();
    let client = site.connect();
    let post = |name: &str| assert_eq!(site.block_on(client.post(CONFIG_MAPS, &config_map(name, 100))).0, 201);
    post("before");
    let (code, saved, errors) = snapshot(&["save", "--name", "mine"]);
    assert_eq!(code, 0, "{errors}");
    let path = saved.split(' ').next().unwrap();
    assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(site.data().join("control")).unwrap().permissions().mode() & 0o777, 0o700);
    post("after");
    let seen = site.block_on(client.get(CONFIG_MAPS))["metadata"]["resourceVersion"].clone();
    let seen: u64 = seen.as_str().unwrap().parse().unwrap();
    let (code, _, errors) = snapshot(&["restore", path]);
    assert!(code == 1 && errors.contains("stop it first"), "{errors}");
    // What cannot be done is told to who asked.
    let (code, _, errors) = snapshot(&["save", "--name", "../x"]);
    assert!(code == 1 && errors.contains("cannot name a snapshot"), "{errors}");
    let (code, _, errors) = snapshot(&["save", "--dir", "/proc/nowhere"]);
    assert!(code == 1 && errors.contains("cannot create the folder"), "{errors}");
    assert!(server.stop().0.success());

    let (code, _, errors) = snapshot(&["save"]);
    assert_eq!(code, 0, "of a server that does not run: {errors}");
    let (code, found) = list(&site, &data);
    assert_eq!((code, found.len()), (0, 2), "{found:?}");
    let keys = |at: usize| found[at]["keys"].as_u64().unwrap();
    assert!(found.iter().all(|row| row["state"] == "ok") && keys(0) < keys(1), "{found:?}");
    assert_eq!(found[1]["name"].as_str().unwrap().split_once("-2").unwrap().0, "on-demand");

    let (code, output, errors) = snapshot(&["restore", found[0]["name"].as_str().unwrap()]);
    assert_eq!(code, 0, "{errors}");
    assert!(output.contains("before-restore"), "{output}");
    let _server = site.start_api();
    let client = site.connect();
    let maps = site.block_on(client.get(CONFIG_MAPS));
    let found = names(&maps);
    assert!(found.contains(&"before".to_owned()) && !found.contains(&"after".to_owned()), "{found:?}");
    let now: u64 = maps["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    assert!(now >= seen + 1_000_000_000, "{seen} {now}");
    // Who watches from before has to list again.
    let watch = format!("{CONFIG_MAPS}?watch=1&resourceVersion={seen}");
    let (status, gone) = site.block_on(client.call("GET", &watch, None)).unwrap();
    assert!(status == 410 || gone.to_string().contains("410"), "{status} {gone}");
}

#[test]
fn taken_by_schedule_kept_and_checked() {
    let site = Site::new();
    let data = site.data().display().to_string();
    let refused = site.refused(&["--snapshot-schedule", "every day"]);
    assert!(refused.contains("--snapshot-schedule every day"), "{refused}");
    let flags = ["--disable-agent", "--etcd-snapshot-schedule-cron", "@every 1s", "--etcd-snapshot-retention", "2"];
    let server = site.start(&flags);
    let taken = || fs::read_dir(site.data().join("snapshots")).map_or(0, |files| files.count());
    until("the second snapshot", || (taken() >= 2).then_some(()));
    std::thread::sleep(std::time::Duration::from_millis(2500));
    assert!(server.stop().0.success());
    let (code, found) = list(&site, &data);
    assert_eq!((code, found.len()), (0, 2), "{found:?}");

    let name = found[0]["name"].as_str().unwrap();
    let path = site.data().join("snapshots").join(format!("{name}.snapshot"));
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let (code, found) = list(&site, &data);
    assert_eq!((code, &found[0]["state"], &found[1]["state"]), (1, &"damaged".into(), &"ok".into()), "{found:?}");
    let (code, _, errors) = site.run(&["snapshot", "restore", "--data-dir", &data, name]);
    assert!(code == 1 && errors.contains("is damaged at byte"), "{errors}");
    let (code, _, errors) = site.run(&["snapshot", "prune", "--data-dir", &data, "--retention", "1"]);
    assert!(code == 0 && !path.exists(), "{errors}");
    let last = found[1]["name"].as_str().unwrap();
    let (code, _, errors) = site.run(&["snapshot", "delete", "--data-dir", &data, last, "none-such"]);
    assert!(code == 1 && taken() == 1, "a name that is not there deletes nothing: {errors}");
    assert_eq!(site.run(&["snapshot", "delete", "--data-dir", &data, last]).0, 0);
    assert_eq!(taken(), 0);
}
