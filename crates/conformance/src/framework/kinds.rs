//! The kinds that tests use: where they are served and what they are called.

use std::borrow::Cow;

/// A served kind.
#[derive(Clone, Debug)]
pub struct Kind {
    /// Empty for the core group.
    pub group: Cow<'static, str>,
    pub version: Cow<'static, str>,
    pub kind: Cow<'static, str>,
    pub plural: Cow<'static, str>,
    pub namespaced: bool,
}

impl Kind {
    const fn fixed(
        group: &'static str,
        version: &'static str,
        kind: &'static str,
        plural: &'static str,
        namespaced: bool,
    ) -> Self {
        Kind {
            group: Cow::Borrowed(group),
            version: Cow::Borrowed(version),
            kind: Cow::Borrowed(kind),
            plural: Cow::Borrowed(plural),
            namespaced,
        }
    }

    /// A custom resource.
    pub fn custom(group: &str, version: &str, kind: &str, plural: &str, namespaced: bool) -> Self {
        Kind {
            group: Cow::Owned(group.to_owned()),
            version: Cow::Owned(version.to_owned()),
            kind: Cow::Owned(kind.to_owned()),
            plural: Cow::Owned(plural.to_owned()),
            namespaced,
        }
    }

    /// As objects of the kind say it: `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_string() } else { format!("{}/{}", self.group, self.version) }
    }

    /// Where the group's version is served: `/api/v1`, `/apis/apps/v1`.
    pub fn root(&self) -> String {
        if self.group.is_empty() { format!("/api/{}", self.version) } else { format!("/apis/{}", self.api_version()) }
    }
}

macro_rules! kinds {
    ($($name:ident: $group:literal $version:literal $kind:literal $plural:literal $scope:ident;)*) => {
        $(pub static $name: Kind = Kind::fixed($group, $version, $kind, $plural, kinds!(@ $scope));)*
    };
    (@ namespaced) => { true };
    (@ cluster) => { false };
}

kinds! {
    CONFIG_MAP: "" "v1" "ConfigMap" "configmaps" namespaced;
    ENDPOINTS: "" "v1" "Endpoints" "endpoints" namespaced;
    EVENT: "" "v1" "Event" "events" namespaced;
    LIMIT_RANGE: "" "v1" "LimitRange" "limitranges" namespaced;
    NAMESPACE: "" "v1" "Namespace" "namespaces" cluster;
    NODE: "" "v1" "Node" "nodes" cluster;
    PERSISTENT_VOLUME: "" "v1" "PersistentVolume" "persistentvolumes" cluster;
    PERSISTENT_VOLUME_CLAIM: "" "v1" "PersistentVolumeClaim" "persistentvolumeclaims" namespaced;
    POD: "" "v1" "Pod" "pods" namespaced;
    POD_TEMPLATE: "" "v1" "PodTemplate" "podtemplates" namespaced;
    REPLICATION_CONTROLLER: "" "v1" "ReplicationController" "replicationcontrollers" namespaced;
    RESOURCE_QUOTA: "" "v1" "ResourceQuota" "resourcequotas" namespaced;
    SECRET: "" "v1" "Secret" "secrets" namespaced;
    SERVICE: "" "v1" "Service" "services" namespaced;
    SERVICE_ACCOUNT: "" "v1" "ServiceAccount" "serviceaccounts" namespaced;
    MUTATING_POLICY: "admissionregistration.k8s.io" "v1" "MutatingAdmissionPolicy" "mutatingadmissionpolicies" cluster;
    MUTATING_POLICY_BINDING: "admissionregistration.k8s.io" "v1" "MutatingAdmissionPolicyBinding" "mutatingadmissionpolicybindings" cluster;
    MUTATING_WEBHOOK: "admissionregistration.k8s.io" "v1" "MutatingWebhookConfiguration" "mutatingwebhookconfigurations" cluster;
    VALIDATING_POLICY: "admissionregistration.k8s.io" "v1" "ValidatingAdmissionPolicy" "validatingadmissionpolicies" cluster;
    VALIDATING_POLICY_BINDING: "admissionregistration.k8s.io" "v1" "ValidatingAdmissionPolicyBinding" "validatingadmissionpolicybindings" cluster;
    VALIDATING_WEBHOOK: "admissionregistration.k8s.io" "v1" "ValidatingWebhookConfiguration" "validatingwebhookconfigurations" cluster;
    CRD: "apiextensions.k8s.io" "v1" "CustomResourceDefinition" "customresourcedefinitions" cluster;
    CONTROLLER_REVISION: "apps" "v1" "ControllerRevision" "controllerrevisions" namespaced;
    DAEMON_SET: "apps" "v1" "DaemonSet" "daemonsets" namespaced;
    DEPLOYMENT: "apps" "v1" "Deployment" "deployments" namespaced;
    REPLICA_SET: "apps" "v1" "ReplicaSet" "replicasets" namespaced;
    STATEFUL_SET: "apps" "v1" "StatefulSet" "statefulsets" namespaced;
    TOKEN_REVIEW: "authentication.k8s.io" "v1" "TokenReview" "tokenreviews" cluster;
    LOCAL_SUBJECT_ACCESS_REVIEW: "authorization.k8s.io" "v1" "LocalSubjectAccessReview" "localsubjectaccessreviews" namespaced;
    SUBJECT_ACCESS_REVIEW: "authorization.k8s.io" "v1" "SubjectAccessReview" "subjectaccessreviews" cluster;
    CRON_JOB: "batch" "v1" "CronJob" "cronjobs" namespaced;
    JOB: "batch" "v1" "Job" "jobs" namespaced;
    POD_CERTIFICATE_REQUEST: "certificates.k8s.io" "v1" "PodCertificateRequest" "podcertificaterequests" namespaced;
    ENDPOINT_SLICE: "discovery.k8s.io" "v1" "EndpointSlice" "endpointslices" namespaced;
    FLOW_SCHEMA: "flowcontrol.apiserver.k8s.io" "v1" "FlowSchema" "flowschemas" cluster;
    PRIORITY_LEVEL: "flowcontrol.apiserver.k8s.io" "v1" "PriorityLevelConfiguration" "prioritylevelconfigurations" cluster;
    IP_ADDRESS: "networking.k8s.io" "v1" "IPAddress" "ipaddresses" cluster;
    SERVICE_CIDR: "networking.k8s.io" "v1" "ServiceCIDR" "servicecidrs" cluster;
    RUNTIME_CLASS: "node.k8s.io" "v1" "RuntimeClass" "runtimeclasses" cluster;
    POD_DISRUPTION_BUDGET: "policy" "v1" "PodDisruptionBudget" "poddisruptionbudgets" namespaced;
    CLUSTER_ROLE_BINDING: "rbac.authorization.k8s.io" "v1" "ClusterRoleBinding" "clusterrolebindings" cluster;
    DEVICE_CLASS: "resource.k8s.io" "v1" "DeviceClass" "deviceclasses" cluster;
    DEVICE_TAINT_RULE: "resource.k8s.io" "v1" "DeviceTaintRule" "devicetaintrules" cluster;
    RESOURCE_CLAIM: "resource.k8s.io" "v1" "ResourceClaim" "resourceclaims" namespaced;
    RESOURCE_CLAIM_TEMPLATE: "resource.k8s.io" "v1" "ResourceClaimTemplate" "resourceclaimtemplates" namespaced;
    RESOURCE_SLICE: "resource.k8s.io" "v1" "ResourceSlice" "resourceslices" cluster;
    PRIORITY_CLASS: "scheduling.k8s.io" "v1" "PriorityClass" "priorityclasses" cluster;
    CSI_DRIVER: "storage.k8s.io" "v1" "CSIDriver" "csidrivers" cluster;
    CSI_NODE: "storage.k8s.io" "v1" "CSINode" "csinodes" cluster;
    CSI_STORAGE_CAPACITY: "storage.k8s.io" "v1" "CSIStorageCapacity" "csistoragecapacities" namespaced;
    STORAGE_CLASS: "storage.k8s.io" "v1" "StorageClass" "storageclasses" cluster;
    VOLUME_ATTACHMENT: "storage.k8s.io" "v1" "VolumeAttachment" "volumeattachments" cluster;
    VOLUME_ATTRIBUTES_CLASS: "storage.k8s.io" "v1" "VolumeAttributesClass" "volumeattributesclasses" cluster;
    STORAGE_VERSION_MIGRATION: "storagemigration.k8s.io" "v1" "StorageVersionMigration" "storageversionmigrations" cluster;
}
