//! Volumes, claims, their classes and CSI drivers; ConfigMaps and Secrets.

use serde_json::Value;

use super::cell::{Cells, UNSET, or_none, quantity};
use super::{AGE, Definition, Kind, NAME};
use crate::meta;

const VOLUME_MODE: Definition = ("VolumeMode", "string", 1, "Filesystem or Block.");
const CAPACITY: Definition = ("Capacity", "string", 0, "Storage that the volume has.");
const ACCESS_MODES: Definition = ("Access Modes", "string", 0, "How the volume may be mounted.");
const STATUS: Definition = ("Status", "string", 0, "Phase of the volume's life.");
const CLASS: Definition = ("StorageClass", "string", 0, "Class of the storage.");
const ATTRIBUTES_CLASS: Definition = ("VolumeAttributesClass", "string", 0, "Class of the volume's attributes.");

pub(super) const KINDS: &[Kind] = &[
    Kind {
        group: "",
        kind: "ConfigMap",
        columns: &[NAME, ("Data", "string", 0, "Entries."), AGE],
        cells: |c| vec![c.name(), (c.count("/data") + c.count("/binaryData")).into(), c.age()],
    },
    Kind {
        group: "",
        kind: "Secret",
        columns: &[NAME, ("Type", "string", 0, "What the secret is for."), ("Data", "string", 0, "Entries."), AGE],
        cells: |c| vec![c.name(), c.text("/type").into(), c.count("/data").into(), c.age()],
    },
    Kind {
        group: "",
        kind: "PersistentVolume",
        columns: &[
            NAME,
            CAPACITY,
            ACCESS_MODES,
            ("Reclaim Policy", "string", 0, "What happens to the volume when its claim goes."),
            STATUS,
            ("Claim", "string", 0, "Claim that the volume is bound to."),
            CLASS,
            ATTRIBUTES_CLASS,
            ("Reason", "string", 0, "Why the volume is in its phase."),
            AGE,
            VOLUME_MODE,
        ],
        cells: volume,
    },
    Kind {
        group: "",
        kind: "PersistentVolumeClaim",
        columns: &[
            NAME,
            STATUS,
            ("Volume", "string", 0, "Volume that the claim is bound to."),
            CAPACITY,
            ACCESS_MODES,
            CLASS,
            ATTRIBUTES_CLASS,
            AGE,
            VOLUME_MODE,
        ],
        cells: claim,
    },
    Kind {
        group: "storage.k8s.io",
        kind: "StorageClass",
        columns: &[
            NAME,
            ("Provisioner", "string", 0, "What makes volumes of the class."),
            ("ReclaimPolicy", "string", 0, "Reclaim policy of its volumes."),
            ("VolumeBindingMode", "string", 0, "When claims are bound."),
            ("AllowVolumeExpansion", "string", 0, "Whether volumes may grow."),
            AGE,
        ],
        cells: |c| {
            vec![
                class_name(
                    c,
                    &[
                        "storageclass.kubernetes.io/is-default-class",
                        "storageclass.beta.kubernetes.io/is-default-class",
                    ],
                ),
                c.text("/provisioner").into(),
                c.text_or("/reclaimPolicy", "Delete").into(),
                c.text_or("/volumeBindingMode", "Immediate").into(),
                c.bool("/allowVolumeExpansion", false).into(),
                c.age(),
            ]
        },
    },
    Kind {
        group: "storage.k8s.io",
        kind: "VolumeAttributesClass",
        columns: &[NAME, ("DriverName", "string", 0, "CSI driver of the class."), AGE],
        cells: |c| {
            let name = class_name(c, &["volumeattributesclass.alpha.kubernetes.io/is-default-class"]);
            vec![name, c.text("/driverName").into(), c.age()]
        },
    },
    Kind {
        group: "storage.k8s.io",
        kind: "VolumeAttachment",
        columns: &[
            NAME,
            ("Attacher", "string", 0, "CSI driver that attaches."),
            ("PV", "string", 0, "Volume."),
            ("Node", "string", 0, "Node that it is attached to."),
            ("Attached", "boolean", 0, "Whether it is attached."),
            AGE,
        ],
        cells: |c| {
            vec![
                c.name(),
                c.text("/spec/attacher").into(),
                c.text("/spec/source/persistentVolumeName").into(),
                c.text("/spec/nodeName").into(),
                c.bool("/status/attached", false).into(),
                c.age(),
            ]
        },
    },
    Kind {
        group: "storage.k8s.io",
        kind: "CSINode",
        columns: &[NAME, ("Drivers", "integer", 0, "CSI drivers registered on the node."), AGE],
        cells: |c| vec![c.name(), c.count("/spec/drivers").into(), c.age()],
    },
    Kind {
        group: "storage.k8s.io",
        kind: "CSIDriver",
        columns: &[
            NAME,
            ("AttachRequired", "boolean", 0, "Whether volumes are attached to nodes."),
            ("PodInfoOnMount", "boolean", 0, "Whether mounts come with the pod's particulars."),
            ("StorageCapacity", "boolean", 0, "Whether the scheduler considers capacity."),
            ("TokenRequests", "string", 0, "Audiences of the tokens that the driver gets."),
            ("RequiresRepublish", "boolean", 0, "Whether mounts are refreshed."),
            ("Modes", "string", 0, "Kinds of volumes that the driver offers."),
            AGE,
        ],
        cells: driver,
    },
    Kind {
        group: "storage.k8s.io",
        kind: "CSIStorageCapacity",
        columns: &[
            NAME,
            ("StorageClassName", "string", 0, "Storage class that it is for."),
            ("Capacity", "string", 0, "Storage left."),
        ],
        cells: |c| {
            let capacity = c.get("/capacity").map_or_else(|| UNSET.to_owned(), |value| quantity(Some(value)));
            vec![c.name(), c.text("/storageClassName").into(), capacity.into()]
        },
    },
];

fn volume(c: &Cells<'_>) -> Vec<Value> {
    let claim = match c.get("/spec/claimRef") {
        Some(_) => format!("{}/{}", c.text("/spec/claimRef/namespace"), c.text("/spec/claimRef/name")),
        None => String::new(),
    };
    vec![
        c.name(),
        quantity(c.get("/spec/capacity/storage")).into(),
        access_modes(c, "/spec/accessModes").into(),
        c.text("/spec/persistentVolumeReclaimPolicy").into(),
        phase(c).into(),
        claim.into(),
        storage_class(c).into(),
        c.text_or("/spec/volumeAttributesClassName", UNSET).into(),
        c.text("/status/reason").into(),
        c.age(),
        c.text_or("/spec/volumeMode", UNSET).into(),
    ]
}

fn claim(c: &Cells<'_>) -> Vec<Value> {
    let bound = !c.text("/spec/volumeName").is_empty();
    let if_bound = |text: String| if bound { text } else { String::new() };
    vec![
        c.name(),
        phase(c).into(),
        c.text("/spec/volumeName").into(),
        if_bound(quantity(c.get("/status/capacity/storage"))).into(),
        if_bound(access_modes(c, "/status/accessModes")).into(),
        storage_class(c).into(),
        c.text_or("/spec/volumeAttributesClassName", UNSET).into(),
        c.age(),
        c.text_or("/spec/volumeMode", UNSET).into(),
    ]
}

fn phase<'v>(c: &Cells<'v>) -> &'v str {
    if c.is_deleting() { "Terminating" } else { c.text("/status/phase") }
}

fn storage_class<'v>(c: &Cells<'v>) -> &'v str {
    meta::annotation(c.object, "volume.beta.kubernetes.io/storage-class").unwrap_or(c.text("/spec/storageClassName"))
}

/// `RWO,ROX`, in upstream's order.
fn access_modes(c: &Cells<'_>, path: &str) -> String {
    let modes = meta::strings(c.get(path));
    let known =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    let short: Vec<&str> = known.iter().filter(|(mode, _)| modes.contains(mode)).map(|(_, short)| *short).collect();
    short.join(",")
}

/// The name, marked if it is the default class.
fn class_name(c: &Cells<'_>, annotations: &[&str]) -> Value {
    let default = annotations.iter().any(|key| meta::annotation(c.object, key) == Some("true"));
    if default { format!("{} (default)", meta::name(c.object)).into() } else { c.name() }
}

fn driver(c: &Cells<'_>) -> Vec<Value> {
    let audiences = c.list("/spec/tokenRequests").iter().map(|request| meta::str_at(request, &["audience"]));
    let tokens = match c.get("/spec/tokenRequests") {
        Some(_) => audiences.collect::<Vec<_>>().join(","),
        None => UNSET.to_owned(),
    };
    let modes = or_none(meta::strings(c.get("/spec/volumeLifecycleModes")).join(","));
    vec![
        c.name(),
        c.bool("/spec/attachRequired", true).into(),
        c.bool("/spec/podInfoOnMount", false).into(),
        c.bool("/spec/storageCapacity", false).into(),
        tokens.into(),
        c.bool("/spec/requiresRepublish", false).into(),
        modes.into(),
        c.age(),
    ]
}
