//! Who may do what: service accounts, bindings, certificates; admission and flow control.

use serde_json::Value;

use super::cell::{Cells, NONE, UNSET, plain};
use super::{AGE, Definition, Kind, NAME, duration};
use crate::meta;
use crate::selector::LabelSelector;

const WEBHOOKS: Definition = ("Webhooks", "integer", 0, "Webhooks of the configuration.");
const PARAM_KIND: Definition = ("ParamKind", "string", 0, "Kind of the policy's parameters.");
const BINDING: [Definition; 4] = [
    NAME,
    ("PolicyName", "string", 0, "Policy that is bound."),
    ("ParamRef", "string", 0, "Object with the policy's parameters."),
    AGE,
];
const ROLE_BINDING: [Definition; 6] = [
    NAME,
    ("Role", "string", 0, "Role that is granted."),
    AGE,
    ("Users", "string", 1, "Users that it is granted to."),
    ("Groups", "string", 1, "Groups that it is granted to."),
    ("ServiceAccounts", "string", 1, "Service accounts that it is granted to."),
];

pub(super) const KINDS: &[Kind] = &[
    Kind {
        group: "",
        kind: "ServiceAccount",
        columns: &[NAME, ("Secrets", "string", 0, "Secrets that its pods may use."), AGE],
        cells: |c| vec![c.name(), c.count("/secrets").into(), c.age()],
    },
    Kind { group: "rbac.authorization.k8s.io", kind: "RoleBinding", columns: &ROLE_BINDING, cells: role_binding },
    Kind {
        group: "rbac.authorization.k8s.io",
        kind: "ClusterRoleBinding",
        columns: &ROLE_BINDING,
        cells: role_binding,
    },
    Kind {
        group: "certificates.k8s.io",
        kind: "CertificateSigningRequest",
        columns: &[
            NAME,
            AGE,
            ("SignerName", "string", 0, "Signer that is asked."),
            ("Requestor", "string", 0, "Who asks."),
            ("RequestedDuration", "string", 0, "How long the certificate shall be valid."),
            ("Condition", "string", 0, "Where the request stands."),
        ],
        cells: |c| {
            let requested = c.get("/spec/expirationSeconds").and_then(Value::as_i64).map(duration::human);
            vec![
                c.name(),
                c.age(),
                c.text_or("/spec/signerName", NONE).into(),
                c.text("/spec/username").into(),
                requested.unwrap_or_else(|| NONE.to_owned()).into(),
                signing_state(c).into(),
            ]
        },
    },
    Kind {
        group: "certificates.k8s.io",
        kind: "ClusterTrustBundle",
        columns: &[NAME, ("SignerName", "string", 0, "Signer that the anchors belong to.")],
        cells: |c| vec![c.name(), c.text_or("/spec/signerName", NONE).into()],
    },
    Kind {
        group: "certificates.k8s.io",
        kind: "PodCertificateRequest",
        columns: &[
            NAME,
            ("PodName", "string", 0, "Pod that the certificate is for."),
            ("ServiceAccountName", "string", 0, "Service account of the pod."),
            ("NodeName", "string", 0, "Node of the pod."),
            ("SignerName", "string", 0, "Signer that is asked."),
            ("State", "string", 0, "Where the request stands."),
        ],
        cells: |c| {
            let fields = ["podName", "serviceAccountName", "nodeName", "signerName"];
            let texts = fields.map(|field| Value::from(c.text(&format!("/spec/{field}"))));
            let state = ["Denied", "Failed", "Issued"].into_iter().find(|state| c.condition(state) == Some("True"));
            std::iter::once(c.name()).chain(texts).chain([state.unwrap_or("Pending").into()]).collect()
        },
    },
    Kind {
        group: ADMISSION,
        kind: "MutatingWebhookConfiguration",
        columns: &[NAME, WEBHOOKS, AGE],
        cells: |c| vec![c.name(), c.count("/webhooks").into(), c.age()],
    },
    Kind {
        group: ADMISSION,
        kind: "ValidatingWebhookConfiguration",
        columns: &[NAME, WEBHOOKS, AGE],
        cells: |c| vec![c.name(), c.count("/webhooks").into(), c.age()],
    },
    Kind {
        group: ADMISSION,
        kind: "ValidatingAdmissionPolicy",
        columns: &[NAME, ("Validations", "integer", 0, "Rules of the policy."), PARAM_KIND, AGE],
        cells: |c| vec![c.name(), c.count("/spec/validations").into(), param_kind(c).into(), c.age()],
    },
    Kind {
        group: ADMISSION,
        kind: "MutatingAdmissionPolicy",
        columns: &[NAME, ("Mutations", "integer", 0, "Mutations of the policy."), PARAM_KIND, AGE],
        cells: |c| vec![c.name(), c.count("/spec/mutations").into(), param_kind(c).into(), c.age()],
    },
    Kind { group: ADMISSION, kind: "ValidatingAdmissionPolicyBinding", columns: &BINDING, cells: policy_binding },
    Kind { group: ADMISSION, kind: "MutatingAdmissionPolicyBinding", columns: &BINDING, cells: policy_binding },
    Kind {
        group: "flowcontrol.apiserver.k8s.io",
        kind: "FlowSchema",
        columns: &[
            NAME,
            ("PriorityLevel", "string", 0, "Priority level of matching requests."),
            ("MatchingPrecedence", "string", 0, "Schemas with lower numbers are tried first."),
            ("DistinguisherMethod", "string", 0, "What tells flows of the schema apart."),
            AGE,
            ("MissingPL", "string", 0, "Whether the priority level does not exist."),
        ],
        cells: |c| {
            vec![
                c.name(),
                c.text("/spec/priorityLevelConfiguration/name").into(),
                c.int("/spec/matchingPrecedence").into(),
                c.text_or("/spec/distinguisherMethod/type", NONE).into(),
                c.age(),
                c.condition("Dangling").unwrap_or("?").into(),
            ]
        },
    },
    Kind {
        group: "flowcontrol.apiserver.k8s.io",
        kind: "PriorityLevelConfiguration",
        columns: &[
            NAME,
            ("Type", "string", 0, "Whether requests are limited."),
            ("NominalConcurrencyShares", "string", 0, "Share of the server's concurrency."),
            ("Queues", "string", 0, "Number of queues."),
            ("HandSize", "string", 0, "Queues that a flow may use."),
            ("QueueLengthLimit", "string", 0, "Requests that one queue holds."),
            AGE,
        ],
        cells: |c| {
            let numbers = [
                "/spec/limited/nominalConcurrencyShares",
                "/spec/limited/limitResponse/queuing/queues",
                "/spec/limited/limitResponse/queuing/handSize",
                "/spec/limited/limitResponse/queuing/queueLengthLimit",
            ];
            let numbers = numbers.map(|path| c.get(path).cloned().unwrap_or_else(|| NONE.into()));
            let head = [c.name(), c.text("/spec/type").into()];
            head.into_iter().chain(numbers).chain([c.age()]).collect()
        },
    },
];

const ADMISSION: &str = "admissionregistration.k8s.io";

fn role_binding(c: &Cells<'_>) -> Vec<Value> {
    let subjects = c.list("/subjects");
    let of = |kind: &str| -> Value {
        let chosen = subjects.iter().filter(|subject| meta::str_at(subject, &["kind"]) == kind);
        let text = |subject: &Value| {
            let name = meta::str_at(subject, &["name"]);
            if kind == "ServiceAccount" {
                format!("{}/{name}", meta::str_at(subject, &["namespace"]))
            } else {
                name.to_owned()
            }
        };
        chosen.map(text).collect::<Vec<_>>().join(", ").into()
    };
    let role = format!("{}/{}", c.text("/roleRef/kind"), c.text("/roleRef/name"));
    vec![c.name(), role.into(), c.age(), of("User"), of("Group"), of("ServiceAccount")]
}

/// `Approved,Issued`
fn signing_state(c: &Cells<'_>) -> String {
    let has = |kind: &str| c.condition(kind).is_some();
    let mut state = match (has("Denied"), has("Approved")) {
        (true, _) => "Denied",
        (false, true) => "Approved",
        (false, false) => "Pending",
    }
    .to_owned();
    if has("Failed") {
        state.push_str(",Failed");
    }
    if !c.text("/status/certificate").is_empty() {
        state.push_str(",Issued");
    }
    state
}

fn param_kind(c: &Cells<'_>) -> String {
    if c.get("/spec/paramKind").is_none() {
        return UNSET.to_owned();
    }
    format!("{}/{}", c.text("/spec/paramKind/apiVersion"), c.text("/spec/paramKind/kind"))
}

fn policy_binding(c: &Cells<'_>) -> Vec<Value> {
    let name = c.text("/spec/paramRef/name");
    let selector = c.get("/spec/paramRef/selector");
    let param = match (name, selector) {
        ("", Some(selector)) => LabelSelector::from_value(selector).map_or_else(|_| plain(selector), |s| s.to_string()),
        ("", None) => UNSET.to_owned(),
        // Whether the parameters' kind has namespaces is not known here.
        (name, _) => format!("{}/{name}", c.text_or("/spec/paramRef/namespace", "*")),
    };
    vec![c.name(), c.text("/spec/policyName").into(), param.into(), c.age()]
}
