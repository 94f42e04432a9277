use serde_json::{Value, json};

use super::*;

fn pod(resources: &[Value], policy: &Value) -> Arc<Pod> {
    let containers: Vec<Value> = resources
        .iter()
        .enumerate()
        .map(|(n, r)| json!({"name": format!("c{n}"), "resources": r, "resizePolicy": policy}))
        .collect();
    let meta = json!({"name": "p", "uid": "p", "generation": 2});
    Arc::new(serde_json::from_value(json!({"metadata": meta, "spec": {"containers": containers}})).unwrap())
}

fn requests(cpu: &str, memory: &str) -> Value {
    json!({"requests": {"cpu": cpu, "memory": memory, "example.com/x": "1"}})
}

fn room() -> Room {
    Room { cpu_milli: 2000, memory_bytes: 1 << 30, pods: 10 }
}

fn shown(resize: &Resize) -> String {
    let conditions = resize.conditions(Timestamp::UNIX_EPOCH);
    let text =
        |c: PodCondition| format!("{}/{}/{}", c.type_, c.reason.unwrap_or_default(), c.message.unwrap_or_default());
    conditions.into_iter().map(text).collect::<Vec<_>>().join(" ")
}

#[test]
fn what_is_wanted_is_allocated_then_given() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("resources.json");
    let (small, large) = (pod(&[requests("1", "1Mi")], &Value::Null), pod(&[requests("1500m", "1Mi")], &Value::Null));
    let mut resize = Resize::load(file.clone(), &small);
    assert!(!resize.is_wanted(&small) && resize.is_wanted(&large));
    assert!(!resize.is_wanted(&pod(&[requests("1000m", "1024Ki")], &Value::Null)), "the same in other words");
    assert_eq!(resize.allocated(&large), small, "not what is merely wanted");

    assert_eq!(Resize::check(&large, [].into_iter(), &room()), None);
    resize.accept(&large).unwrap();
    assert_eq!((resize.allocated(&large), resize.actuated(&large)), (large.clone(), small.clone()));
    assert_eq!(shown(&resize), "PodResizeInProgress//");
    let container = &large.spec.as_ref().unwrap().containers[0];
    assert_eq!(resize.actuation(container), Some(Actuation::InPlace));

    // A restart of the daemon in the midst of it forgets nothing.
    let mut resize = Resize::load(file.clone(), &small);
    assert_eq!((resize.allocated(&small), resize.actuation(container)), (large.clone(), Some(Actuation::InPlace)));
    assert!(resize.actuate("c0") && !resize.actuate("c0"));
    resize.save().unwrap();
    let resize = Resize::load(file, &small);
    assert!(resize.all_actuated() && shown(&resize).is_empty());
    assert_eq!(resize.allocated(&small), large);
}

#[test]
fn without_a_checkpoint_the_status_tells() {
    let mut wants = Pod::clone(&pod(&[requests("2", "1Mi"), requests("2", "1Mi")], &Value::Null));
    let running = json!({"name": "c0", "state": {"running": {}}, "resources": {"requests": {"cpu": "1", "memory": "1Mi"}},
        "image": "", "imageID": "", "ready": true, "restartCount": 0});
    wants.status = Some(serde_json::from_value(json!({"containerStatuses": [running]})).unwrap());
    let wants = Arc::new(wants);
    let resize = Resize::load(PathBuf::from("/nonexistent"), &wants);
    let cpu = |pod: &Pod| podutil::pod_total(pod, |r| podutil::request(r, "cpu"), "cpu").milli_value();
    assert!(resize.is_wanted(&wants));
    assert_eq!(cpu(&resize.allocated(&wants)), 3000);
}

#[test]
fn what_does_not_fit_waits_or_never_will() {
    let others = [Pod::clone(&pod(&[requests("1", "1Mi")], &Value::Null))].map(|mut other| {
        other.metadata.uid = Some("other".to_owned());
        other
    });
    let check =
        |cpu: &str, memory: &str| Resize::check(&pod(&[requests(cpu, memory)], &Value::Null), others.iter(), &room());
    assert_eq!(check("1", "1Mi"), None);
    let late = "Node didn't have enough resource: cpu, requested: 1500, used: 1000, capacity: 2000";
    assert_eq!(check("1500m", "1Mi"), Some(Refusal::Deferred(late.to_owned())));
    let never = "Node didn't have enough capacity: memory, requested: 2147483648, capacity: 1073741824";
    assert_eq!(check("1500m", "2Gi"), Some(Refusal::Infeasible(never.to_owned())));

    let wanted = pod(&[requests("1500m", "1Mi")], &Value::Null);
    let mut resize = Resize::load(PathBuf::new(), &pod(&[requests("1", "1Mi")], &Value::Null));
    assert!(resize.refuse(&wanted, check("1500m", "1Mi").unwrap()) && resize.is_deferred());
    assert!(!resize.refuse(&wanted, check("1500m", "1Mi").unwrap()), "told once");
    assert_eq!(shown(&resize), format!("PodResizePending/Deferred/{late}"));
    resize.nothing_wanted();
    assert_eq!(shown(&resize), "");
}

#[test]
fn the_policy_of_what_changes_decides() {
    let dir = tempfile::tempdir().unwrap();
    let policy = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"},
        {"resourceName": "cpu", "restartPolicy": "NotRequired"}]);
    let actuation = |cpu: &str, memory: &str| {
        let mut resize = Resize::load(dir.path().join("f"), &pod(&[requests("1", "1Mi")], &policy));
        let wanted = pod(&[requests(cpu, memory)], &policy);
        resize.accept(&wanted).unwrap();
        let actuation = resize.actuation(&wanted.spec.as_ref().unwrap().containers[0]);
        std::fs::remove_file(dir.path().join("f")).unwrap();
        actuation
    };
    assert_eq!(actuation("1", "1Mi"), None);
    assert_eq!(actuation("2", "1Mi"), Some(Actuation::InPlace));
    assert_eq!(actuation("2", "2Mi"), Some(Actuation::Restart));
}

#[test]
fn a_failure_is_shown_until_it_is_mended() {
    let dir = tempfile::tempdir().unwrap();
    let mut resize = Resize::load(dir.path().join("f"), &pod(&[requests("1", "2Mi")], &Value::Null));
    resize.accept(&pod(&[requests("1", "1Mi")], &Value::Null)).unwrap();
    resize.fail("too full".to_owned(), Timestamp::UNIX_EPOCH);
    assert_eq!(shown(&resize), "PodResizeInProgress/Error/too full");
    resize.actuate("c0");
    assert_eq!((shown(&resize).as_str(), resize.retry_at()), ("", None));
}
