//! What a Job's policies say of a failed pod, and of the indexes that have succeeded. Pure.

use k8s_openapi::api::batch::v1::{
    Job, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement as OnExitCodes, PodFailurePolicyRule, SuccessPolicy,
};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::indexes::Indexes;
use crate::pods;

/// What becomes of a failed pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// It counts towards the limits of retries; so does one that no rule matches.
    Count,
    /// It is replaced and not counted.
    Ignore,
    /// Its index has failed for good.
    FailIndex,
    /// The Job has failed, with this message.
    FailJob(String),
}

/// The action of the first rule that matches a failed pod. A rule with an action that is not known is passed over.
pub fn action(policy: Option<&PodFailurePolicy>, pod: &Pod) -> Action {
    let rules = policy.map(|policy| policy.rules.as_slice()).unwrap_or_default();
    for (index, rule) in rules.iter().enumerate() {
        let Some(what) = matched(rule, pod) else { continue };
        match rule.action.as_str() {
            "Count" => return Action::Count,
            "Ignore" => return Action::Ignore,
            "FailIndex" => return Action::FailIndex,
            "FailJob" => return Action::FailJob(format!("{what} matching FailJob rule at index {index}")),
            _ => {}
        }
    }
    Action::Count
}

/// What of the pod matches the rule, in the words of the condition's message.
fn matched(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let (namespace, name) = (pod.metadata.namespace.as_deref(), pod.metadata.name.as_deref());
    let id = format!("{}/{}", namespace.unwrap_or_default(), name.unwrap_or_default());
    if let Some(codes) = &rule.on_exit_codes {
        let mut lists = [&status.container_statuses, &status.init_container_statuses].into_iter();
        let (container, code) = lists.find_map(|list| list.iter().flatten().find_map(|one| exit(one, codes)))?;
        return Some(format!("Container {container} for pod {id} failed with exit code {code}"));
    }
    let patterns = rule.on_pod_conditions.as_deref().unwrap_or_default();
    let is = |condition: &&k8s_openapi::api::core::v1::PodCondition| {
        patterns.iter().any(|pattern| {
            pattern.type_ == condition.type_ && pattern.status.as_deref().unwrap_or("True") == condition.status
        })
    };
    let condition = status.conditions.iter().flatten().find(is)?;
    Some(format!("Pod {id} has condition {}", condition.type_))
}

/// Name and exit code of a container that has failed as the rule describes.
fn exit<'a>(container: &'a ContainerStatus, codes: &OnExitCodes) -> Option<(&'a str, i32)> {
    let code = container.state.as_ref()?.terminated.as_ref()?.exit_code;
    let meant = codes.container_name.as_ref().is_none_or(|name| *name == container.name);
    let listed = codes.values.contains(&code);
    let matching = match codes.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        _ => false,
    };
    (code != 0 && meant && matching).then_some((container.name.as_str(), code))
}

/// Only pods that have ended are replaced, not those that are being deleted.
pub fn replaces_only_failed(job: &Job) -> bool {
    job.spec.as_ref().is_some_and(|spec| {
        spec.pod_replacement_policy.as_deref() == Some("Failed") || spec.pod_failure_policy.is_some()
    })
}

/// A deleted pod counts as failed unless its end is awaited: it may never get to say so itself.
pub fn is_failed(job: &Job, pod: &Pod) -> bool {
    match pods::phase(pod) {
        "Failed" => true,
        "Succeeded" => false,
        _ => pod.metadata.deletion_timestamp.is_some() && !replaces_only_failed(job),
    }
}

/// The message of the rule that the succeeded indexes fulfil, if any.
pub fn success(policy: Option<&SuccessPolicy>, completions: i32, succeeded: &Indexes) -> Option<String> {
    if succeeded.is_empty() {
        return None;
    }
    let met = |rule: &k8s_openapi::api::batch::v1::SuccessPolicyRule| match &rule.succeeded_indexes {
        Some(text) => {
            let wanted = Indexes::parse(text, completions);
            let got = wanted.common(succeeded);
            !wanted.is_empty() && (got == wanted.total() || rule.succeeded_count.is_some_and(|count| got >= count))
        }
        None => rule.succeeded_count.is_some_and(|count| succeeded.total() >= count),
    };
    let rule = policy?.rules.iter().position(met)?;
    Some(format!("Matched rules at index {rule}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::yaml;

    fn failed(status: &str) -> Pod {
        yaml(&format!("{{ metadata: {{ namespace: ns, name: p }}, status: {status} }}"))
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let policy: PodFailurePolicy = yaml(
            "rules:
             - { action: FailJob, onExitCodes: { containerName: main, operator: In, values: [5, 6] } }
             - { action: Ignore, onPodConditions: [{ type: DisruptionTarget }] }
             - { action: FailIndex, onExitCodes: { operator: In, values: [9] } }
             - { action: Count, onExitCodes: { operator: NotIn, values: [7] } }
             - { action: FailJob, onPodConditions: [{ type: ConfigIssue, status: 'False' }] }",
        );
        let exited = |name: &str, code: i32| {
            failed(&format!(
                "{{ containerStatuses: [{{ name: {name}, image: '', imageID: '', ready: false, restartCount: 0, state: {{ terminated: {{ exitCode: {code} }} }} }}] }}"
            ))
        };
        let of = |pod: &Pod| action(Some(&policy), pod);
        let message = "Container main for pod ns/p failed with exit code 5 matching FailJob rule at index 0";
        assert_eq!(of(&exited("main", 5)), Action::FailJob(message.into()));
        assert_eq!(of(&exited("side", 5)), Action::Count);
        assert_eq!(of(&exited("side", 9)), Action::FailIndex);
        assert_eq!(of(&exited("side", 7)), Action::Count, "no rule matches");
        assert_eq!(of(&exited("side", 0)), Action::Count, "a container that succeeded says nothing");
        assert_eq!(of(&failed("{ conditions: [{ type: DisruptionTarget, status: 'True' }] }")), Action::Ignore);
        let message = "Pod ns/p has condition ConfigIssue matching FailJob rule at index 4";
        assert_eq!(
            of(&failed("{ conditions: [{ type: ConfigIssue, status: 'False' }] }")),
            Action::FailJob(message.into())
        );
        assert_eq!(action(None, &exited("main", 5)), Action::Count);
    }

    #[test]
    fn success_may_come_early() {
        let met = |rules: &str, succeeded: &str| {
            let policy: SuccessPolicy = yaml(&format!("rules: {rules}"));
            success(Some(&policy), 10, &Indexes::parse(succeeded, 10))
        };
        let rules = "[{ succeededIndexes: '0-2', succeededCount: 2 }, { succeededCount: 5 }]";
        assert_eq!(met(rules, "0,2"), Some("Matched rules at index 0".into()));
        assert_eq!(met(rules, "0,4-6"), None);
        assert_eq!(met(rules, "3-7"), Some("Matched rules at index 1".into()));
        assert_eq!(met("[{ succeededIndexes: '0,5' }]", "0"), None);
        assert_eq!(met("[{ succeededIndexes: '0,5' }]", "0-5"), Some("Matched rules at index 0".into()));
        assert_eq!(met("[{ succeededCount: 0 }]", ""), None, "nothing has succeeded yet");
    }
}
