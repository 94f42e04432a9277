//! sig-storage.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::lifecycle::{Row, cycle, operations};
use crate::framework::{condition as condition_of, *};

tests! {
    "[sig-storage] CSIInlineVolumes should run through the lifecycle of a CSIDriver [Conformance]" => cycle, &CSI_DRIVERS;
    "[sig-storage] CSIInlineVolumes should support CSIVolumeSource in Pod API [Conformance]" => inline_volumes;
    "[sig-storage] CSINodes CSI Conformance should run through the lifecycle of a csinode [Conformance]" => cycle, &CSI_NODES;
    "[sig-storage] CSIStorageCapacity should support CSIStorageCapacities API operations [Conformance]" => operations, &CAPACITIES;
    "[sig-storage] ConfigMap should be immutable if `immutable` field is set [Conformance]" => immutable, &kinds::CONFIG_MAP;
    "[sig-storage] PersistentVolumes CSI Conformance should apply changes to a pv/pvc status [Conformance]" => volume_status;
    "[sig-storage] PersistentVolumes CSI Conformance should run through the lifecycle of a PV and a PVC [Conformance]" => volumes;
    "[sig-storage] Secrets should be immutable if `immutable` field is set [Conformance]" => immutable, &kinds::SECRET;
    "[sig-storage] StorageClasses CSI Conformance should run through the lifecycle of a StorageClass [Conformance]" => cycle, &STORAGE_CLASSES;
    "[sig-storage] VolumeAttachment Conformance should apply changes to a volumeattachment status [Conformance]" => attachment_status;
    "[sig-storage] VolumeAttachment Conformance should run through the lifecycle of a VolumeAttachment [Conformance]" => cycle, &ATTACHMENTS;
    "[sig-storage] VolumeAttributesClass [FeatureGate:VolumeAttributesClass] should run through the lifecycle of a VolumeAttributesClass [Conformance]" => cycle, &ATTRIBUTES_CLASSES;
}

static CSI_DRIVERS: Row = Row {
    kind: &kinds::CSI_DRIVER,
    object: |cx, number| {
        let modes = if number == 0 { json!(["Ephemeral"]) } else { json!(["Persistent", "Ephemeral"]) };
        json!({
            "metadata": {"name": cx.unique("inline-driver")},
            "spec": {"volumeLifecycleModes": modes, "fsGroupPolicy": "ReadWriteOnceWithFSType"},
        })
    },
    patch: || json!({}),
    update: || json!({}),
    status: None,
};

static CSI_NODES: Row = Row {
    kind: &kinds::CSI_NODE,
    object: |cx, _| json!({"metadata": {"name": cx.unique("csinode")}, "spec": {"drivers": null}}),
    patch: || json!({}),
    update: || json!({}),
    status: None,
};

static STORAGE_CLASSES: Row = Row {
    kind: &kinds::STORAGE_CLASS,
    object: |_, _| json!({"metadata": {}, "provisioner": "conformance-fake-provisioner"}),
    patch: || json!({}),
    update: || json!({}),
    status: None,
};

static ATTRIBUTES_CLASSES: Row = Row {
    kind: &kinds::VOLUME_ATTRIBUTES_CLASS,
    object: |_, _| json!({"metadata": {}, "driverName": "conformance-fake-driver", "parameters": {"foo": "bar"}}),
    patch: || json!({}),
    update: || json!({}),
    status: None,
};

static ATTACHMENTS: Row = Row {
    kind: &kinds::VOLUME_ATTACHMENT,
    object: |cx, _| attachment(cx),
    patch: || json!({}),
    update: || json!({}),
    status: None,
};

/// An attachment for an attacher that nobody is, to a node that does not matter.
fn attachment(cx: &Cx) -> Value {
    let name = cx.unique("va");
    json!({
        "metadata": {"name": name, "uid": name},
        "spec": {
            "attacher": "conformance.storage.k8s.io", "nodeName": "conformance-node",
            "source": {"persistentVolumeName": format!("pv-of-{name}")},
        },
        "status": {"attached": false},
    })
}

static CAPACITIES: Row = Row {
    kind: &kinds::CSI_STORAGE_CAPACITY,
    object: |cx, number| {
        json!({
            "metadata": {"name": format!("{}-csc{number}", cx.ns)}, "storageClassName": "mysc", "capacity": "1Gi",
            "nodeTopology": {"matchLabels": {"example.com/zone": "a"}},
        })
    },
    patch: || json!({"capacity": "2Gi"}),
    update: || json!({"capacity": "3Gi"}),
    status: None,
};

async fn attachment_status(cx: Arc<Cx>) -> Result<()> {
    let api = cx.api(&kinds::VOLUME_ATTACHMENT);
    let made = cx.create_for_test(&kinds::VOLUME_ATTACHMENT, &attachment(&cx)).await?;
    let subject = name(&made);
    let label = json!({"metadata": {"labels": {subject: "patched"}}});
    let patched = api.patch(subject, Patch::Merge, &label).await?;
    expect(&patched, &format!("/metadata/labels/{subject}"), "patched")?;
    let read = api.send("GET", &[subject, "status"], &[], None).await?;
    ensure!(*at(&read, "/status/attached") != json!(true), "attached at first: {}", read["status"]);
    let patched = api.patch_sub(subject, "status", Patch::Merge, &json!({"status": {"attached": true}})).await?;
    expect(&patched, "/status/attached", true)?;
    let updated = api.change_sub(subject, Some("status"), |va| va["status"]["attached"] = false.into()).await?;
    ensure!(*at(&updated, "/status/attached") != json!(true), "attached after the update: {}", updated["status"]);
    api.delete(subject).await?;
    let selector = format!("{subject}=patched");
    api.wait_none(&labelled(&selector), SOON).await
}

async fn inline_volumes(cx: Arc<Cx>) -> Result<()> {
    let pods = cx.api(&kinds::POD);
    let mut container = shell("main", "ls /mnt/*");
    container["volumeMounts"] = json!([
        {"name": "vol1", "mountPath": "/mnt/vol1"}, {"name": "vol2", "mountPath": "/mnt/vol2"},
    ]);
    let mut subject = pod("subject", container);
    let driver = "conformance.example.com";
    subject["spec"]["volumes"] = json!([
        {"name": "vol1", "csi": {"driver": driver}},
        {"name": "vol2", "csi": {"driver": driver, "fsType": "ext4", "readOnly": true}},
    ]);
    let made = pods.create(&subject).await?;
    expect_failure(pods.create(&subject).await, 409, "the same pod again")?;
    let read = pods.get("subject").await?;
    expect(&read, "/metadata/uid", uid(&made))?;
    let volumes = items(&read, "/spec/volumes");
    let second = volumes.iter().find(|volume| name_of(volume) == "vol2").context("the second volume is lost")?;
    expect(second, "/csi", json!({"driver": driver, "fsType": "ext4", "readOnly": true}))?;
    let list = pods.list(&[]).await?;
    ensure!(items(&list, "/items").len() == 1, "{} pods, expected 1", items(&list, "/items").len());
    let patch = json!({"metadata": {"annotations": {"patched": "true"}}});
    expect(&pods.patch("subject", Patch::Merge, &patch).await?, "/metadata/annotations/patched", "true")?;
    pods.delete("subject").await?;
    if let Some(left) = pods.find("subject").await? {
        ensure!(!at(&left, "/metadata/deletionTimestamp").is_null(), "the pod is not being deleted");
    }
    Ok(())
}

fn name_of(volume: &Value) -> &str {
    text(volume, "/name")
}

/// Config maps and secrets that say that they are immutable are.
async fn immutable(cx: Arc<Cx>, kind: &'static Kind) -> Result<()> {
    let api = cx.api(kind);
    // What a client reads: a secret's data are base64.
    let (first, second, third) = ("Zmlyc3Q=", "c2Vjb25k", "dGhpcmQ=");
    let subject = "subject";
    api.create(&json!({"metadata": {"name": subject}, "data": {"key": first}})).await?;
    let changed = api.change(subject, |object| object["data"]["key"] = second.into()).await?;
    expect(&changed, "/data/key", second)?;
    api.change(subject, |object| object["immutable"] = true.into()).await?;
    cx.step("changes that must be refused");
    let refused = |what: &'static str, result: Result<Value>| expect_failure(result, 422, what);
    refused("changed data", api.change(subject, |object| object["data"]["key"] = third.into()).await)?;
    refused("added data", api.change(subject, |object| object["data"]["more"] = third.into()).await)?;
    refused("mutable again", api.change(subject, |object| object["immutable"] = false.into()).await)?;
    refused("no longer immutable", api.change(subject, |object| object["immutable"] = Value::Null).await)?;
    let read = api.get(subject).await?;
    expect(&read, "/data", json!({"key": second}))?;
    expect(&read, "/immutable", true)?;
    cx.step("what is still allowed");
    let labelled = api.change(subject, |object| set(object, "/metadata/labels/changed", "true")).await?;
    expect(&labelled, "/metadata/labels/changed", "true")?;
    api.delete(subject).await?;
    api.wait_gone(subject, SOON).await
}

/// A volume and a claim for it, of a class and a driver of the test's own.
async fn volume_and_claim(cx: &Cx) -> Result<(Value, Value)> {
    let resources = json!({"requests": {"storage": "2Gi"}});
    let volume = json!({
        "metadata": {"name": cx.unique(&cx.ns), "labels": {"conformance-pv": cx.ns}},
        "spec": {
            "capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": cx.ns,
            "persistentVolumeReclaimPolicy": "Retain",
            "csi": {"driver": format!("driver-{}", cx.ns), "volumeHandle": "conformance"},
        },
    });
    let claim = json!({
        "metadata": {"generateName": "pvc-"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": cx.ns, "resources": resources},
    });
    let volume = cx.create_for_test(&kinds::PERSISTENT_VOLUME, &volume).await?;
    Ok((volume, cx.api(&kinds::PERSISTENT_VOLUME_CLAIM).create(&claim).await?))
}

/// How long upstream waits for volumes and claims to be gone.
const DELETED: Duration = Duration::from_secs(30);

async fn volumes(cx: Arc<Cx>) -> Result<()> {
    let (volumes, claims) = (cx.api(&kinds::PERSISTENT_VOLUME), cx.api(&kinds::PERSISTENT_VOLUME_CLAIM));
    let driver = json!({
        "metadata": {"name": format!("driver-{}", cx.ns)},
        "spec": {"volumeLifecycleModes": ["Persistent"], "fsGroupPolicy": "ReadWriteOnceWithFSType"},
    });
    cx.create_for_test(&kinds::CSI_DRIVER, &driver).await?;
    let (volume, claim) = volume_and_claim(&cx).await?;
    let selector = format!("conformance-pv={}", cx.ns);
    let mine = labelled(&selector);
    cx.step("list, patch, get");
    let list = volumes.list(&mine).await?;
    ensure!(items(&list, "/items").len() == 1, "volumes by label: {}", items(&list, "/items").len());
    let list = claims.list(&[]).await?;
    ensure!(items(&list, "/items").len() == 1, "claims: {}", items(&list, "/items").len());
    for (api, object) in [(&volumes, &volume), (&claims, &claim)] {
        let patch = json!({"metadata": {"labels": {name(object): "patched"}}});
        let patched = api.patch(name(object), Patch::Strategic, &patch).await?;
        expect(&patched, &format!("/metadata/labels/{}", name(object)), "patched")?;
        newer(object, &patched)?;
        let read = api.get(name(object)).await?;
        revision(&read)?;
        expect(&read, "/metadata/uid", uid(object))?;
    }
    cx.step("delete");
    for (api, object) in [(&claims, &claim), (&volumes, &volume)] {
        api.delete(name(object)).await?;
        api.wait_gone(name(object), DELETED).await?;
    }
    cx.step("another pair, updated");
    let (volume, claim) = volume_and_claim(&cx).await?;
    for (api, object) in [(&volumes, &volume), (&claims, &claim)] {
        let pointer = format!("/metadata/labels/{}", name(object));
        // All labels are replaced.
        let labels = json!({name(object): "updated"});
        let updated = api.change(name(object), |object| object["metadata"]["labels"] = labels.clone()).await?;
        expect(&updated, &pointer, "updated")?;
        newer(object, &updated)?;
    }
    let (of_claim, of_volume) = (format!("{}=updated", name(&claim)), format!("{}=updated", name(&volume)));
    let list = cx.cluster_wide(&kinds::PERSISTENT_VOLUME_CLAIM).list(&labelled(&of_claim)).await?;
    ensure!(items(&list, "/items").len() == 1, "claims in all namespaces: {}", items(&list, "/items").len());
    cx.step("deletecollection");
    for (api, selector) in [(&claims, of_claim), (&volumes, of_volume)] {
        api.delete_collection(&labelled(&selector)).await?;
        api.wait_none(&labelled(&selector), DELETED).await?;
    }
    Ok(())
}

async fn volume_status(cx: Arc<Cx>) -> Result<()> {
    let (volumes, claims) = (cx.api(&kinds::PERSISTENT_VOLUME), cx.api(&kinds::PERSISTENT_VOLUME_CLAIM));
    let (volume, claim) = volume_and_claim(&cx).await?;
    let (volume, claim) = (name(&volume), name(&claim));
    cx.step("get the status");
    let read = claims.send("GET", &[claim, "status"], &[], None).await?;
    let phase = text(&read, "/status/phase");
    ensure!(matches!(phase, "Pending" | "Bound"), "the claim's phase is {phase:?}");
    let read = volumes.send("GET", &[volume, "status"], &[], None).await?;
    let phase = text(&read, "/status/phase");
    ensure!(matches!(phase, "Available" | "Bound" | "Pending"), "the volume's phase is {phase:?}");
    let condition = |kind: &str| json!({"type": kind, "status": "True", "reason": "Conformance", "message": kind});
    let says = |object: &Value, kind: &str| {
        let found = condition_of(object, kind);
        ensure!(found.is_some_and(|c| text(c, "/message") == kind), "no condition {kind}: {}", object["status"]);
        Ok(())
    };
    cx.step("patch the status");
    let patch = json!({"status": {"conditions": [condition("StatusPatched")]}});
    says(&claims.patch_sub(claim, "status", Patch::Merge, &patch).await?, "StatusPatched")?;
    let patch = json!({"status": {"message": "StatusPatched", "reason": "patched"}});
    let patched = volumes.patch_sub(volume, "status", Patch::Merge, &patch).await?;
    expect(&patched, "/status/message", "StatusPatched")?;
    expect(&patched, "/status/reason", "patched")?;
    cx.step("update the status");
    let updated = claims.change_sub(claim, Some("status"), |claim| {
        if let Some(conditions) = claim["status"]["conditions"].as_array_mut() {
            conditions.push(condition("StatusUpdated"));
        }
    });
    says(&updated.await?, "StatusUpdated")?;
    let updated = volumes.change_sub(volume, Some("status"), |volume| {
        volume["status"]["message"] = "StatusUpdated".into();
        volume["status"]["reason"] = "updated".into();
    });
    let updated = updated.await?;
    expect(&updated, "/status/message", "StatusUpdated")?;
    expect(&updated, "/status/reason", "updated")
}
