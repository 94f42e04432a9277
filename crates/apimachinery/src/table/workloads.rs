//! Pods and what makes pods.

use std::collections::BTreeMap;

use serde_json::Value;

use super::cell::{self, Cells, NONE, UNKNOWN, UNSET, plain, quantity};
use super::{AGE, CONTAINERS, IMAGES, Kind, NAME, SELECTOR, duration};
use crate::meta;
use crate::selector::LabelSelector;

const POD_TEMPLATE: &str = "/spec/template/spec/containers";
const JOB_TEMPLATE: &str = "/spec/jobTemplate/spec/template/spec/containers";

pub(super) const KINDS: &[Kind] = &[
    Kind {
        group: "",
        kind: "Pod",
        columns: &[
            NAME,
            ("Ready", "string", 0, "Containers that are ready, of all."),
            ("Status", "string", 0, "What the containers together are up to."),
            ("Restarts", "string", 0, "How often containers were restarted, and how long ago the last was."),
            AGE,
            ("IP", "string", 1, "Address of the pod."),
            ("Node", "string", 1, "Node that the pod runs on."),
            ("Nominated Node", "string", 1, "Node where room is being made for the pod."),
            ("Readiness Gates", "string", 1, "Additional conditions of readiness that hold, of all."),
        ],
        cells: pod,
    },
    Kind {
        group: "",
        kind: "PodTemplate",
        columns: &[
            NAME,
            ("Containers", "string", 0, CONTAINERS.3),
            ("Images", "string", 0, IMAGES.3),
            ("Pod Labels", "string", 0, "Labels of the template."),
        ],
        cells: |c| {
            let [names, images] = c.containers("/template/spec/containers");
            vec![c.name(), names, images, c.labels("/template/metadata/labels")]
        },
    },
    Kind {
        group: "",
        kind: "ReplicationController",
        columns: &[NAME, DESIRED, CURRENT, READY, AGE, CONTAINERS, IMAGES, SELECTOR],
        cells: |c| replicated(c, c.labels("/spec/selector")),
    },
    Kind {
        group: "apps",
        kind: "ReplicaSet",
        columns: &[NAME, DESIRED, CURRENT, READY, AGE, CONTAINERS, IMAGES, SELECTOR],
        cells: |c| replicated(c, c.selector("/spec/selector")),
    },
    Kind {
        group: "apps",
        kind: "Deployment",
        columns: &[
            NAME,
            ("Ready", "string", 0, "Pods that are ready, of those desired."),
            ("Up-to-date", "string", 0, "Pods of the newest template."),
            ("Available", "string", 0, "Pods ready for at least minReadySeconds."),
            AGE,
            CONTAINERS,
            IMAGES,
            SELECTOR,
        ],
        cells: deployment,
    },
    Kind {
        group: "apps",
        kind: "StatefulSet",
        columns: &[NAME, ("Ready", "string", 0, "Pods that are ready, of those desired."), AGE, CONTAINERS, IMAGES],
        cells: |c| {
            let ready = format!("{}/{}", c.int("/status/readyReplicas"), c.int("/spec/replicas"));
            let [names, images] = c.containers(POD_TEMPLATE);
            vec![c.name(), ready.into(), c.age(), names, images]
        },
    },
    Kind {
        group: "apps",
        kind: "DaemonSet",
        columns: &[
            NAME,
            ("Desired", "integer", 0, "Nodes that should run the pod."),
            ("Current", "integer", 0, "Nodes that should and do run it."),
            ("Ready", "integer", 0, "Nodes whose pod is ready."),
            ("Up-to-date", "integer", 0, "Nodes whose pod is of the newest template."),
            ("Available", "integer", 0, "Nodes whose pod is available."),
            ("Node Selector", "string", 0, "Labels that a node must have."),
            AGE,
            CONTAINERS,
            IMAGES,
            SELECTOR,
        ],
        cells: daemon_set,
    },
    Kind {
        group: "apps",
        kind: "ControllerRevision",
        columns: &[
            NAME,
            ("Controller", "string", 0, "Controller that the revision belongs to."),
            ("Revision", "string", 0, "Number of the revision."),
            AGE,
        ],
        cells: |c| vec![c.name(), controller(c).into(), c.int("/revision").into(), c.age()],
    },
    Kind {
        group: "batch",
        kind: "Job",
        columns: &[
            NAME,
            ("Status", "string", 0, "Where the job stands."),
            ("Completions", "string", 0, "Pods that succeeded, of those wanted."),
            ("Duration", "string", 0, "How long the job took, or has been running."),
            AGE,
            CONTAINERS,
            IMAGES,
            SELECTOR,
        ],
        cells: job,
    },
    Kind {
        group: "batch",
        kind: "CronJob",
        columns: &[
            NAME,
            ("Schedule", "string", 0, "When jobs are made, in cron's form."),
            ("Timezone", "string", 0, "Time zone of the schedule."),
            ("Suspend", "boolean", 0, "Whether no more jobs are made."),
            ("Active", "integer", 0, "Jobs that are running."),
            ("Last Schedule", "string", 0, "Time since a job was last made."),
            AGE,
            CONTAINERS,
            IMAGES,
            SELECTOR,
        ],
        cells: cron_job,
    },
    Kind {
        group: "autoscaling",
        kind: "HorizontalPodAutoscaler",
        columns: &[
            NAME,
            ("Reference", "string", 0, "What is scaled."),
            ("Targets", "string", 0, "Current and wanted values of the metrics."),
            ("MinPods", "string", 0, "Fewest replicas."),
            ("MaxPods", "string", 0, "Most replicas."),
            ("Replicas", "string", 0, "Replicas when last looked at."),
            AGE,
        ],
        cells: autoscaler,
    },
    Kind {
        group: "autoscaling",
        kind: "Scale",
        columns: &[
            NAME,
            ("Desired", "integer", 0, DESIRED.3),
            ("Available", "integer", 0, "Replicas that there are."),
            AGE,
        ],
        cells: |c| vec![c.name(), c.int("/spec/replicas").into(), c.int("/status/replicas").into(), c.age()],
    },
    Kind {
        group: "policy",
        kind: "PodDisruptionBudget",
        columns: &[
            NAME,
            ("Min Available", "string", 0, "Pods that must stay available."),
            ("Max Unavailable", "string", 0, "Pods that may be unavailable."),
            ("Allowed Disruptions", "integer", 0, "Pods that may be disrupted now."),
            AGE,
        ],
        cells: |c| {
            let bound = |path: &str| Value::from(c.plain_or(path, "N/A"));
            let allowed = c.int("/status/disruptionsAllowed").into();
            vec![c.name(), bound("/spec/minAvailable"), bound("/spec/maxUnavailable"), allowed, c.age()]
        },
    },
];

const DESIRED: super::Definition = ("Desired", "integer", 0, "Replicas wanted.");
const CURRENT: super::Definition = ("Current", "integer", 0, "Replicas that there are.");
const READY: super::Definition = ("Ready", "integer", 0, "Replicas that are ready.");

fn replicated(c: &Cells<'_>, selector: Value) -> Vec<Value> {
    let [names, images] = c.containers(POD_TEMPLATE);
    let counts = ["/spec/replicas", "/status/replicas", "/status/readyReplicas"].map(|path| Value::from(c.int(path)));
    std::iter::once(c.name()).chain(counts).chain([c.age(), names, images, selector]).collect()
}

fn deployment(c: &Cells<'_>) -> Vec<Value> {
    let ready = format!("{}/{}", c.int("/status/readyReplicas"), c.int("/spec/replicas"));
    let [names, images] = c.containers(POD_TEMPLATE);
    let selector = LabelSelector::from_value(c.get("/spec/selector").unwrap_or(&Value::Null));
    let selector = selector.map_or_else(|_| "<invalid>".to_owned(), |selector| selector.to_string());
    let (updated, available) = (c.int("/status/updatedReplicas"), c.int("/status/availableReplicas"));
    vec![c.name(), ready.into(), updated.into(), available.into(), c.age(), names, images, selector.into()]
}

fn daemon_set(c: &Cells<'_>) -> Vec<Value> {
    let counts = [
        "/status/desiredNumberScheduled",
        "/status/currentNumberScheduled",
        "/status/numberReady",
        "/status/updatedNumberScheduled",
        "/status/numberAvailable",
    ];
    let [names, images] = c.containers(POD_TEMPLATE);
    let rest = [c.labels("/spec/template/spec/nodeSelector"), c.age(), names, images, c.selector("/spec/selector")];
    std::iter::once(c.name()).chain(counts.map(|path| Value::from(c.int(path)))).chain(rest).collect()
}

/// `statefulset.apps/web`
fn controller(c: &Cells<'_>) -> String {
    let owners = c.list("/metadata/ownerReferences");
    let Some(owner) = owners.iter().find(|o| o.get("controller") == Some(&Value::Bool(true))) else {
        return NONE.to_owned();
    };
    let group = meta::str_at(owner, &["apiVersion"]).split_once('/').map_or("", |(group, _)| group);
    let dot = if group.is_empty() { "" } else { "." };
    let kind = format!("{}{dot}{group}", meta::str_at(owner, &["kind"])).to_lowercase();
    format!("{kind}/{}", meta::str_at(owner, &["name"]))
}

fn job(c: &Cells<'_>) -> Vec<Value> {
    let succeeded = c.int("/status/succeeded");
    let completions = match (c.get("/spec/completions").and_then(Value::as_i64), c.int("/spec/parallelism")) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, parallelism @ 2..) => format!("{succeeded}/1 of {parallelism}"),
        (None, _) => format!("{succeeded}/1"),
    };
    let took = match (cell::seconds(c.text("/status/startTime")), cell::seconds(c.text("/status/completionTime"))) {
        (None, _) => String::new(),
        (Some(start), end) => duration::human(end.unwrap_or(c.now).saturating_sub(start)),
    };
    let holds = |kind: &str| c.condition(kind) == Some("True");
    let status = if holds("Complete") {
        "Complete"
    } else if holds("Failed") {
        "Failed"
    } else if c.is_deleting() {
        "Terminating"
    } else if holds("Suspended") {
        "Suspended"
    } else if holds("FailureTarget") {
        "FailureTarget"
    } else {
        "Running"
    };
    let [names, images] = c.containers(POD_TEMPLATE);
    let selector = c.selector("/spec/selector");
    vec![c.name(), status.into(), completions.into(), took.into(), c.age(), names, images, selector]
}

fn cron_job(c: &Cells<'_>) -> Vec<Value> {
    let suspend = match c.get("/spec/suspend").and_then(Value::as_bool) {
        Some(true) => "True",
        Some(false) => "False",
        None => UNSET,
    };
    let last =
        c.get("/status/lastScheduleTime").map_or_else(|| NONE.to_owned(), |_| c.since("/status/lastScheduleTime"));
    let [names, images] = c.containers(JOB_TEMPLATE);
    vec![
        c.name(),
        c.text("/spec/schedule").into(),
        c.text_or("/spec/timeZone", NONE).into(),
        suspend.into(),
        c.count("/status/active").into(),
        last.into(),
        c.age(),
        names,
        images,
        c.selector("/spec/jobTemplate/spec/selector"),
    ]
}

fn autoscaler(c: &Cells<'_>) -> Vec<Value> {
    let target = format!("{}/{}", c.text("/spec/scaleTargetRef/kind"), c.text("/spec/scaleTargetRef/name"));
    vec![
        c.name(),
        target.into(),
        metrics(c).into(),
        c.plain_or("/spec/minReplicas", UNSET).into(),
        c.int("/spec/maxReplicas").into(),
        c.int("/status/currentReplicas").into(),
        c.age(),
    ]
}

fn metrics(c: &Cells<'_>) -> String {
    const MAX: usize = 2;
    // The first version of the kind has but one metric, in fields of its own.
    if let Some(target) = c.get("/spec/targetCPUUtilizationPercentage") {
        let current = c.get("/status/currentCPUUtilizationPercentage");
        return format!("cpu: {}/{}%", current.map_or_else(|| UNKNOWN.to_owned(), |v| format!("{v}%")), plain(target));
    }
    let (specs, statuses) = (c.list("/spec/metrics"), c.list("/status/currentMetrics"));
    if specs.is_empty() {
        return NONE.to_owned();
    }
    let texts: Vec<String> = specs.iter().enumerate().map(|(i, spec)| metric(spec, statuses.get(i))).collect();
    let shown = texts[..texts.len().min(MAX)].join(", ");
    match texts.len().saturating_sub(MAX) {
        0 => shown,
        more => format!("{shown} + {more} more..."),
    }
}

/// `cpu: 10%/50%`, `5/10 (avg)`
fn metric(spec: &Value, status: Option<&Value>) -> String {
    let (field, named) = match meta::str_at(spec, &["type"]) {
        "External" => ("external", false),
        "Pods" => ("pods", false),
        "Object" => ("object", false),
        "Resource" => ("resource", true),
        "ContainerResource" => ("containerResource", true),
        _ => return "<unknown type>".to_owned(),
    };
    let target = |name: &str| meta::at(spec, &[field, "target", name]);
    let current = |name: &str| status.and_then(|status| meta::at(status, &[field, "current", name]));
    let amount = |value: Option<&Value>| value.map_or_else(|| UNKNOWN.to_owned(), |value| quantity(Some(value)));
    let percent = |value: Option<&Value>, absent: &str| value.map_or_else(|| absent.to_owned(), |v| format!("{v}%"));
    let name = if named { format!("{}: ", meta::str_at(spec, &[field, "name"])) } else { String::new() };
    match (target("averageValue"), named) {
        (Some(wanted), _) => {
            let unit = if matches!(field, "external" | "object") { " (avg)" } else { "" };
            format!("{name}{}/{}{unit}", amount(current("averageValue")), quantity(Some(wanted)))
        }
        (None, true) => {
            let wanted = percent(target("averageUtilization"), "<auto>");
            format!("{name}{}/{wanted}", percent(current("averageUtilization"), UNKNOWN))
        }
        (None, false) => format!("{}/{}", amount(current("value")), quantity(target("value"))),
    }
}

/// What a pod's containers come to.
#[derive(Default)]
struct Progress {
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<i64>,
    reason: String,
}

impl Progress {
    fn count_restarts(&mut self, status: &Value) {
        self.restarts += status.get("restartCount").and_then(Value::as_i64).unwrap_or(0);
        let finished = meta::str_at(status, &["lastState", "terminated", "finishedAt"]);
        self.last_restart = self.last_restart.max(cell::seconds(finished));
    }
}

fn pod(c: &Cells<'_>) -> Vec<Value> {
    let mut progress = Progress { total: c.list("/spec/containers").len(), reason: phase(c), ..Progress::default() };
    let mut sidecars = Progress::default();
    let initializing = init_containers(c, &mut progress, &mut sidecars);
    if !initializing || c.condition("Initialized") == Some("True") {
        progress.restarts = sidecars.restarts;
        progress.last_restart = sidecars.last_restart;
        main_containers(c, &mut progress);
    }
    if c.is_deleting() && c.text("/status/reason") == "NodeLost" {
        progress.reason = UNKNOWN_STATUS.to_owned();
    } else if c.is_deleting() && !matches!(c.text("/status/phase"), "Succeeded" | "Failed") {
        progress.reason = "Terminating".to_owned();
    }
    let restarts = match progress.last_restart {
        Some(time) if progress.restarts != 0 => {
            format!("{} ({} ago)", progress.restarts, duration::human(c.now.saturating_sub(time)))
        }
        _ => progress.restarts.to_string(),
    };
    vec![
        c.name(),
        format!("{}/{}", progress.ready, progress.total).into(),
        progress.reason.into(),
        restarts.into(),
        c.age(),
        c.text_or("/status/podIPs/0/ip", c.text_or("/status/podIP", NONE)).into(),
        c.text_or("/spec/nodeName", NONE).into(),
        c.text_or("/status/nominatedNodeName", NONE).into(),
        readiness_gates(c).into(),
    ]
}

const UNKNOWN_STATUS: &str = "Unknown";

fn phase(c: &Cells<'_>) -> String {
    let gated = c.list("/status/conditions").iter().any(|condition| {
        meta::str_at(condition, &["type"]) == "PodScheduled"
            && meta::str_at(condition, &["reason"]) == "SchedulingGated"
    });
    if gated { "SchedulingGated".to_owned() } else { c.text_or("/status/reason", c.text("/status/phase")).to_owned() }
}

/// Accounts for init containers; true if the pod is still at them. Restarts of sidecars go on counting afterwards.
fn init_containers(c: &Cells<'_>, progress: &mut Progress, sidecars: &mut Progress) -> bool {
    let specs = c.list("/spec/initContainers");
    let restartable: BTreeMap<&str, bool> =
        specs.iter().map(|s| (meta::str_at(s, &["name"]), meta::str_at(s, &["restartPolicy"]) == "Always")).collect();
    progress.total += restartable.values().filter(|sidecar| **sidecar).count();
    for (i, status) in c.list("/status/initContainerStatuses").iter().enumerate() {
        progress.count_restarts(status);
        let sidecar = restartable.get(meta::str_at(status, &["name"])).copied().unwrap_or(false);
        if sidecar {
            sidecars.count_restarts(status);
        }
        let terminated = meta::at(status, &["state", "terminated"]).filter(|t| !t.is_null());
        let waiting = meta::str_at(status, &["state", "waiting", "reason"]);
        if terminated.is_some_and(|t| exit_code(t) == 0) {
            continue;
        }
        if sidecar && status.get("started") == Some(&Value::Bool(true)) {
            progress.ready += usize::from(status.get("ready") == Some(&Value::Bool(true)));
            continue;
        }
        progress.reason = match terminated {
            Some(terminated) => format!("Init:{}", outcome(terminated)),
            None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
            None => format!("Init:{i}/{}", specs.len()),
        };
        return true;
    }
    false
}

fn main_containers(c: &Cells<'_>, progress: &mut Progress) {
    let mut running = false;
    for status in c.list("/status/containerStatuses").iter().rev() {
        progress.count_restarts(status);
        let waiting = meta::str_at(status, &["state", "waiting", "reason"]);
        let terminated = meta::at(status, &["state", "terminated"]).filter(|t| !t.is_null());
        let is_running = meta::at(status, &["state", "running"]).is_some_and(|r| !r.is_null());
        if !waiting.is_empty() {
            waiting.clone_into(&mut progress.reason);
        } else if let Some(terminated) = terminated {
            progress.reason = outcome(terminated);
        } else if is_running && status.get("ready") == Some(&Value::Bool(true)) {
            running = true;
            progress.ready += 1;
        }
    }
    if progress.reason == "Completed" && running {
        let ready = c.condition("Ready") == Some("True");
        progress.reason = if ready { "Running" } else { "NotReady" }.to_owned();
    }
}

fn exit_code(terminated: &Value) -> i64 {
    terminated.get("exitCode").and_then(Value::as_i64).unwrap_or(0)
}

/// How a container ended: its reason, else its signal, else its exit code.
fn outcome(terminated: &Value) -> String {
    let reason = meta::str_at(terminated, &["reason"]);
    let signal = terminated.get("signal").and_then(Value::as_i64).unwrap_or(0);
    match (reason, signal) {
        ("", 0) => format!("ExitCode:{}", exit_code(terminated)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn readiness_gates(c: &Cells<'_>) -> String {
    let gates = c.list("/spec/readinessGates");
    if gates.is_empty() {
        return NONE.to_owned();
    }
    let held = gates.iter().filter(|gate| c.condition(meta::str_at(gate, &["conditionType"])) == Some("True")).count();
    format!("{held}/{}", gates.len())
}
