//! Nodes, namespaces, events and the cluster's own machinery.

use std::collections::BTreeSet;

use serde_json::Value;

use super::cell::{Cells, NONE, UNKNOWN, quantity};
use super::{AGE, Definition, Kind, NAME};
use crate::meta;

const EVENT: [Definition; 10] = [
    ("Last Seen", "string", 0, "Time since it last happened."),
    ("Type", "string", 0, "Normal or Warning."),
    ("Reason", "string", 0, "Short reason, for machines."),
    ("Object", "string", 0, "Object that it is about."),
    ("Subobject", "string", 1, "Part of the object that it is about."),
    ("Source", "string", 1, "Component that reports it."),
    ("Message", "string", 0, "What happened."),
    ("First Seen", "string", 1, "Time since it first happened."),
    ("Count", "string", 1, "How often it happened."),
    ("Name", "string", 1, NAME.3),
];

pub(super) const KINDS: &[Kind] = &[
    Kind {
        group: "",
        kind: "Node",
        columns: &[
            NAME,
            ("Status", "string", 0, "Whether the node is ready and takes pods."),
            ("Roles", "string", 0, "Roles from the node's labels."),
            AGE,
            ("Version", "string", 0, "Version of the kubelet."),
            ("Internal-IP", "string", 1, "Address within the cluster."),
            ("External-IP", "string", 1, "Address outside the cluster."),
            ("OS-Image", "string", 1, "Operating system."),
            ("Kernel-Version", "string", 1, "Kernel."),
            ("Container-Runtime", "string", 1, "Container runtime and its version."),
        ],
        cells: node,
    },
    Kind {
        group: "",
        kind: "Namespace",
        columns: &[NAME, ("Status", "string", 0, "Phase of the namespace's life."), AGE],
        cells: |c| vec![c.name(), c.text("/status/phase").into(), c.age()],
    },
    Kind { group: "", kind: "Event", columns: &EVENT, cells: event },
    Kind { group: "events.k8s.io", kind: "Event", columns: &EVENT, cells: event },
    Kind {
        group: "",
        kind: "ComponentStatus",
        columns: &[
            NAME,
            ("Status", "string", 0, "Whether the component is healthy."),
            ("Message", "string", 0, "What it says."),
            ("Error", "string", 0, "What is wrong."),
        ],
        cells: |c| {
            let conditions = c.list("/conditions");
            let healthy = conditions.iter().find(|condition| meta::str_at(condition, &["type"]) == "Healthy");
            let text = |field: &str| healthy.map_or("", |condition| meta::str_at(condition, &[field]));
            let status = match healthy {
                None => "Unknown",
                Some(_) if text("status") == "True" => "Healthy",
                Some(_) => "Unhealthy",
            };
            vec![c.name(), status.into(), text("message").into(), text("error").into()]
        },
    },
    Kind {
        group: "",
        kind: "ResourceQuota",
        columns: &[
            NAME,
            ("Request", "string", 0, "Used and allowed amounts of requests and objects."),
            ("Limit", "string", 0, "Used and allowed amounts of limits."),
            AGE,
        ],
        cells: |c| {
            let [requests, limits] = quota(c);
            vec![c.name(), requests.into(), limits.into(), c.age()]
        },
    },
    Kind {
        group: "apiregistration.k8s.io",
        kind: "APIService",
        columns: &[
            NAME,
            ("Service", "string", 0, "Service that answers for the API, or Local."),
            ("Available", "string", 0, "Whether it can be reached."),
            AGE,
        ],
        cells: |c| {
            let service = match c.get("/spec/service") {
                Some(_) => format!("{}/{}", c.text("/spec/service/namespace"), c.text("/spec/service/name")),
                None => "Local".to_owned(),
            };
            vec![c.name(), service.into(), availability(c).into(), c.age()]
        },
    },
    Kind {
        group: "scheduling.k8s.io",
        kind: "PriorityClass",
        columns: &[
            NAME,
            ("Value", "integer", 0, "Priority of pods of the class."),
            ("Global-Default", "boolean", 0, "Whether pods without a class get it."),
            AGE,
            ("PreemptionPolicy", "string", 0, "Whether its pods may push others off."),
        ],
        cells: |c| {
            let default = c.bool("/globalDefault", false).into();
            vec![c.name(), c.int("/value").into(), default, c.age(), c.text("/preemptionPolicy").into()]
        },
    },
    Kind {
        group: "node.k8s.io",
        kind: "RuntimeClass",
        columns: &[NAME, ("Handler", "string", 0, "Handler of the container runtime."), AGE],
        cells: |c| vec![c.name(), c.text("/handler").into(), c.age()],
    },
    Kind {
        group: "coordination.k8s.io",
        kind: "Lease",
        columns: &[NAME, ("Holder", "string", 0, "Who holds the lease."), AGE],
        cells: |c| vec![c.name(), c.text("/spec/holderIdentity").into(), c.age()],
    },
    Kind {
        group: "resource.k8s.io",
        kind: "ResourceClaim",
        columns: &[NAME, ("State", "string", 0, "Whether devices are allocated and reserved."), AGE],
        cells: |c| vec![c.name(), claim_state(c).into(), c.age()],
    },
    Kind {
        group: "resource.k8s.io",
        kind: "ResourceSlice",
        columns: &[
            NAME,
            ("Node", "string", 0, "Node that has the devices."),
            ("Driver", "string", 0, "Driver of the devices."),
            ("Pool", "string", 0, "Pool that the slice is part of."),
            AGE,
        ],
        cells: |c| {
            let fields = ["/spec/nodeName", "/spec/driver", "/spec/pool/name"].map(|path| Value::from(c.text(path)));
            std::iter::once(c.name()).chain(fields).chain([c.age()]).collect()
        },
    },
    Kind { group: "resource.k8s.io", kind: "DeviceClass", columns: &[NAME, AGE], cells: |c| vec![c.name(), c.age()] },
    Kind {
        group: "resource.k8s.io",
        kind: "DeviceTaintRule",
        columns: &[NAME, AGE],
        cells: |c| vec![c.name(), c.age()],
    },
    Kind {
        group: "resource.k8s.io",
        kind: "ResourceClaimTemplate",
        columns: &[NAME, AGE],
        cells: |c| vec![c.name(), c.age()],
    },
    Kind {
        group: "storagemigration.k8s.io",
        kind: "StorageVersionMigration",
        columns: &[NAME, ("Resource", "string", 0, "Resource whose objects are rewritten.")],
        cells: |c| {
            let parts =
                ["resource", "version", "group"].map(|part| c.text(&format!("/spec/resource/{part}")).to_owned());
            let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
            vec![c.name(), parts.join(".").into()]
        },
    },
];

fn node(c: &Cells<'_>) -> Vec<Value> {
    let mut status = match c.condition("Ready") {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if c.bool("/spec/unschedulable", false) {
        status.push_str(",SchedulingDisabled");
    }
    let info = |field: &str| c.text_or(&format!("/status/nodeInfo/{field}"), UNKNOWN).to_owned();
    vec![
        c.name(),
        status.into(),
        roles(c).into(),
        c.age(),
        c.text("/status/nodeInfo/kubeletVersion").into(),
        address(c, "InternalIP").into(),
        address(c, "ExternalIP").into(),
        info("osImage").into(),
        info("kernelVersion").into(),
        info("containerRuntimeVersion").into(),
    ]
}

fn roles(c: &Cells<'_>) -> String {
    let labels = c.get("/metadata/labels").and_then(Value::as_object).into_iter().flatten();
    let role = |(key, value): (&String, &Value)| match key.strip_prefix("node-role.kubernetes.io/") {
        Some(role) => Some(role.to_owned()),
        None if key == "kubernetes.io/role" => value.as_str().map(str::to_owned),
        None => None,
    };
    let roles: BTreeSet<String> = labels.filter_map(role).filter(|role| !role.is_empty()).collect();
    if roles.is_empty() { NONE.to_owned() } else { Vec::from_iter(roles).join(",") }
}

fn address<'v>(c: &Cells<'v>, kind: &str) -> &'v str {
    let addresses = c.list("/status/addresses");
    let found = addresses.iter().find(|address| meta::str_at(address, &["type"]) == kind);
    found.map_or(NONE, |address| meta::str_at(address, &["address"]))
}

/// Both versions of Event: the older's fields first, then the newer's names for them.
fn event(c: &Cells<'_>) -> Vec<Value> {
    let either = |old: &str, new: &str| {
        let text = c.text(old);
        if text.is_empty() { c.text(new) } else { text }
    };
    let first = either(either_path(c, "/firstTimestamp", "/deprecatedFirstTimestamp"), "/eventTime");
    let last = c.text(either_path(c, "/lastTimestamp", "/deprecatedLastTimestamp"));
    let last = if last.is_empty() { first } else { last };
    let (last, count) = match c.get("/series") {
        Some(_) => (c.text("/series/lastObservedTime"), c.int("/series/count")),
        None => (last, c.int(either_path(c, "/count", "/deprecatedCount")).max(1)),
    };
    let about = |field: &str| either(&format!("/involvedObject/{field}"), &format!("/regarding/{field}"));
    let kind = about("kind").to_lowercase();
    let object = if about("name").is_empty() { kind } else { format!("{kind}/{}", about("name")) };
    vec![
        c.since_time(last).into(),
        c.text("/type").into(),
        c.text("/reason").into(),
        object.into(),
        about("fieldPath").into(),
        event_source(c).into(),
        either("/message", "/note").trim().into(),
        c.since_time(first).into(),
        count.into(),
        c.name(),
    ]
}

fn either_path<'p>(c: &Cells<'_>, old: &'p str, new: &'p str) -> &'p str {
    if c.get(old).is_some() { old } else { new }
}

/// `component, host`
fn event_source(c: &Cells<'_>) -> String {
    let first =
        |paths: [&str; 4]| paths.into_iter().map(|path| c.text(path)).find(|text| !text.is_empty()).unwrap_or("");
    let component =
        first(["/source/component", "/deprecatedSource/component", "/reportingComponent", "/reportingController"]);
    let host = first(["/source/host", "/deprecatedSource/host", "/reportingInstance", ""]);
    if host.is_empty() { component.to_owned() } else { format!("{component}, {host}") }
}

/// `cpu: 1/2, pods: 3/10`: requests and objects, then limits.
fn quota(c: &Cells<'_>) -> [String; 2] {
    let mut texts = [Vec::new(), Vec::new()];
    for (resource, hard) in c.get("/status/hard").and_then(Value::as_object).into_iter().flatten() {
        let used = c.get("/status/used").and_then(|used| used.get(resource));
        let side = usize::from(resource.starts_with("limits."));
        texts[side].push(format!("{resource}: {}/{}", quantity(used), quantity(Some(hard))));
    }
    texts.map(|side| side.join(", "))
}

/// `True`, or the status with its reason.
fn availability(c: &Cells<'_>) -> String {
    let conditions = c.list("/status/conditions");
    let Some(found) = conditions.iter().find(|condition| meta::str_at(condition, &["type"]) == "Available") else {
        return String::new();
    };
    match meta::str_at(found, &["status"]) {
        "True" => "True".to_owned(),
        status => format!("{status} ({})", meta::str_at(found, &["reason"])),
    }
}

fn claim_state(c: &Cells<'_>) -> String {
    let mut states = Vec::new();
    if c.is_deleting() {
        states.push("deleted");
    }
    if c.get("/status/allocation").is_some() {
        states.push("allocated");
        if c.count("/status/reservedFor") > 0 {
            states.push("reserved");
        }
    } else if !c.is_deleting() {
        states.push("pending");
    }
    states.join(",")
}
