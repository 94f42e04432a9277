//! The kinds of dynamic resource allocation.

use serde_json::json;

use crate::framework::*;
use crate::tests::lifecycle::{Row, crud};

tests! {
    "[sig-node] [DRA] CRUD Tests resource.k8s.io/v1 DeviceClass [Conformance]" => crud, &CLASSES;
    "[sig-node] [DRA] CRUD Tests resource.k8s.io/v1 DeviceTaintRule [Conformance]" => crud, &TAINT_RULES;
    "[sig-node] [DRA] CRUD Tests resource.k8s.io/v1 ResourceClaim [Conformance]" => crud, &CLAIMS;
    "[sig-node] [DRA] CRUD Tests resource.k8s.io/v1 ResourceClaimTemplate [Conformance]" => crud, &CLAIM_TEMPLATES;
    "[sig-node] [DRA] CRUD Tests resource.k8s.io/v1 ResourceSlice [Conformance]" => crud, &SLICES;
}

static CLASSES: Row = Row {
    kind: &kinds::DEVICE_CLASS,
    object: |cx, _| {
        let selector = json!({"cel": {"expression": "device.driver == 'driver-a.example.com'"}});
        json!({"metadata": {"name": format!("test-{}", cx.ns)}, "spec": {"selectors": [selector]}})
    },
    patch: || json!({}),
    update: || json!({"spec": {"selectors": [{"cel": {"expression": "device.driver == 'driver-b.example.com'"}}]}}),
    status: None,
};

static TAINT_RULES: Row = Row {
    kind: &kinds::DEVICE_TAINT_RULE,
    object: |cx, _| {
        json!({"metadata": {"name": format!("test-{}", cx.ns)}, "spec": {
            // Of a driver that nobody has.
            "deviceSelector": {"driver": "conformance.example.com"},
            "taint": {"key": "example.com/taint", "value": "first", "effect": "NoSchedule", "timeAdded": "2026-01-01T00:00:00Z"},
        }})
    },
    patch: || json!({}),
    update: || json!({"spec": {"taint": {"value": "second"}}}),
    status: Some(|| {
        json!({"conditions": [{
            "type": "Tested", "status": "True", "reason": "Tested", "message": "by a test",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]})
    }),
};

/// The spec cannot be changed, so the update is of a label.
static CLAIMS: Row = Row {
    kind: &kinds::RESOURCE_CLAIM,
    object: |_, _| {
        let request = json!({"name": "req-0", "exactly": {"deviceClassName": "conformance-none"}});
        json!({"metadata": {"name": "test"}, "spec": {"devices": {"requests": [request]}}})
    },
    patch: || json!({}),
    update: || json!({"metadata": {"labels": {"resource.example.com": "test"}}}),
    status: Some(|| {
        let result =
            json!({"request": "req-0", "driver": "conformance.example.com", "pool": "pool-0", "device": "device-0"});
        json!({"allocation": {"devices": {"results": [result]}}})
    }),
};

static CLAIM_TEMPLATES: Row = Row {
    kind: &kinds::RESOURCE_CLAIM_TEMPLATE,
    object: |_, _| {
        let request = json!({"name": "req-0", "exactly": {"deviceClassName": "conformance-none"}});
        json!({"metadata": {"name": "test"}, "spec": {"spec": {"devices": {"requests": [request]}}}})
    },
    patch: || json!({}),
    update: || json!({"metadata": {"labels": {"resource.example.com": "test"}}}),
    status: None,
};

static SLICES: Row = Row {
    kind: &kinds::RESOURCE_SLICE,
    object: |cx, _| {
        let pool = json!({"name": cx.ns, "generation": 1, "resourceSliceCount": 1});
        json!({"metadata": {"name": format!("test-{}", cx.ns)}, "spec": {
            "driver": "conformance.example.com", "allNodes": true, "pool": pool, "devices": [{"name": "device-0"}],
        }})
    },
    patch: || json!({}),
    update: || json!({"spec": {"devices": [{"name": "device-0"}, {"name": "device-1"}]}}),
    status: None,
};
