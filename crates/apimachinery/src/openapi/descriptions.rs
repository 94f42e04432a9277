//! The documentation of the built-in types, which the crate `k8s-openapi` carries in its JSON schemas.
//!
//! Nothing is kept: a document under construction asks for the texts of its kinds, and drops them with itself.

use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value};

/// Texts by definition: schemas of which only the descriptions are read.
#[derive(Default)]
pub struct Descriptions {
    definitions: Map<String, Value>,
}

impl Descriptions {
    /// The texts of `kinds` (definition names) and of all that they refer to. Names that are no kind of the table are passed over.
    pub fn of<'a>(kinds: impl IntoIterator<Item = &'a str>) -> Self {
        let mut generator = SchemaGenerator::default();
        for kind in kinds {
            if let Some((_, add)) = KINDS.iter().copied().flatten().find(|(name, _)| *name == kind) {
                add(&mut generator);
            }
        }
        Descriptions { definitions: generator.take_definitions(false) }
    }

    pub fn definition(&self, name: &str) -> Option<&str> {
        self.definitions.get(name)?.get("description")?.as_str()
    }

    pub fn field(&self, definition: &str, field: &str) -> Option<&str> {
        self.definitions.get(definition)?.get("properties")?.get(field)?.get("description")?.as_str()
    }
}

fn add<T: JsonSchema>(generator: &mut SchemaGenerator) {
    generator.subschema_for::<T>();
}

/// The kinds of one package: its name among definitions, its module, and the kinds' names in it.
macro_rules! kinds {
    ($package:literal, $($module:ident)::+, $($kind:ident)*) => {{
        use k8s_openapi::$($module)::+ as module;
        &[$((concat!($package, ".", stringify!($kind)), add::<module::$kind>)),*]
    }};
}

type Add = fn(&mut SchemaGenerator);

/// Every kind of `data/resources.txt`, the bodies of subresources, and what every server publishes.
#[rustfmt::skip]
const KINDS: &[&[(&str, Add)]] = &[
    kinds!("io.k8s.api.core.v1", api::core::v1,
        Binding ComponentStatus ConfigMap Endpoints Event LimitRange Namespace Node PersistentVolume
        PersistentVolumeClaim Pod PodTemplate ReplicationController ResourceQuota Secret Service ServiceAccount
    ),
    kinds!("io.k8s.kube-aggregator.pkg.apis.apiregistration.v1", kube_aggregator::pkg::apis::apiregistration::v1,
        APIService
    ),
    kinds!("io.k8s.api.apps.v1", api::apps::v1,
        ControllerRevision DaemonSet Deployment ReplicaSet StatefulSet
    ),
    kinds!("io.k8s.api.events.v1", api::events::v1,
        Event
    ),
    kinds!("io.k8s.api.authentication.v1", api::authentication::v1,
        SelfSubjectReview TokenRequest TokenReview
    ),
    kinds!("io.k8s.api.authorization.v1", api::authorization::v1,
        LocalSubjectAccessReview SelfSubjectAccessReview SelfSubjectRulesReview SubjectAccessReview
    ),
    kinds!("io.k8s.api.autoscaling.v2", api::autoscaling::v2,
        HorizontalPodAutoscaler
    ),
    kinds!("io.k8s.api.autoscaling.v1", api::autoscaling::v1,
        HorizontalPodAutoscaler Scale
    ),
    kinds!("io.k8s.api.batch.v1", api::batch::v1,
        CronJob Job
    ),
    kinds!("io.k8s.api.certificates.v1", api::certificates::v1,
        CertificateSigningRequest ClusterTrustBundle PodCertificateRequest
    ),
    kinds!("io.k8s.api.networking.v1", api::networking::v1,
        IPAddress Ingress IngressClass NetworkPolicy ServiceCIDR
    ),
    kinds!("io.k8s.api.policy.v1", api::policy::v1,
        Eviction PodDisruptionBudget
    ),
    kinds!("io.k8s.api.rbac.v1", api::rbac::v1,
        ClusterRole ClusterRoleBinding Role RoleBinding
    ),
    kinds!("io.k8s.api.storage.v1", api::storage::v1,
        CSIDriver CSINode CSIStorageCapacity StorageClass VolumeAttachment VolumeAttributesClass
    ),
    kinds!("io.k8s.api.admissionregistration.v1", api::admissionregistration::v1,
        MutatingAdmissionPolicy MutatingAdmissionPolicyBinding MutatingWebhookConfiguration ValidatingAdmissionPolicy
        ValidatingAdmissionPolicyBinding ValidatingWebhookConfiguration
    ),
    kinds!("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1", apiextensions_apiserver::pkg::apis::apiextensions::v1,
        CustomResourceDefinition
    ),
    kinds!("io.k8s.api.scheduling.v1", api::scheduling::v1,
        PriorityClass
    ),
    kinds!("io.k8s.api.coordination.v1", api::coordination::v1,
        Lease
    ),
    kinds!("io.k8s.api.node.v1", api::node::v1,
        RuntimeClass
    ),
    kinds!("io.k8s.api.discovery.v1", api::discovery::v1,
        EndpointSlice
    ),
    kinds!("io.k8s.api.flowcontrol.v1", api::flowcontrol::v1,
        FlowSchema PriorityLevelConfiguration
    ),
    kinds!("io.k8s.api.resource.v1", api::resource::v1,
        DeviceClass DeviceTaintRule ResourceClaim ResourceClaimTemplate ResourceSlice
    ),
    kinds!("io.k8s.api.storagemigration.v1", api::storagemigration::v1,
        StorageVersionMigration
    ),
    kinds!("io.k8s.apimachinery.pkg.apis.meta.v1", apimachinery::pkg::apis::meta::v1,
        APIGroup APIGroupList APIResourceList APIVersions DeleteOptions ListMeta Patch Status
    ),
    kinds!("io.k8s.apimachinery.pkg.version", apimachinery::pkg::version,
       
        Info
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::builtin;

    #[test]
    fn every_kind_is_described() {
        for row in builtin().rows() {
            let name = &*row.schema.get(row.root).name;
            assert!(KINDS.iter().copied().flatten().any(|(kind, _)| *kind == name), "{name}");
        }
        let texts = Descriptions::of(["io.k8s.api.core.v1.Pod"]);
        assert!(texts.definition("io.k8s.api.core.v1.Container").is_some());
        assert!(texts.field("io.k8s.api.core.v1.PodSpec", "containers").is_some());
        assert_eq!(texts.definition("io.k8s.api.core.v1.Service"), None);
    }
}
