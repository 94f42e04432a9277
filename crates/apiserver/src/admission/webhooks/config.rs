//! A webhook configuration, compiled.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::resource::ResourceRow;
use apimachinery::selector::label::LabelSelector;
use apimachinery::{Value, meta};

use crate::backend;
use crate::cel::Expression;

/// What conditions may speak of.
pub const VARIABLES: [&str; 4] = ["object", "oldObject", "request", "authorizer"];

/// One webhook of a configuration.
#[derive(Debug)]
pub struct Hook {
    pub name: String,
    /// The configuration that it is of.
    pub configuration: String,
    /// Tells hooks apart: configuration, place in it, name.
    pub id: String,
    pub criteria: Criteria,
    /// Compiled, or why a condition cannot be: such a hook's failure policy decides about every write that it matches.
    pub conditions: Vec<Result<Expression, String>>,
    /// `failurePolicy: Ignore`
    pub fails_open: bool,
    /// `reinvocationPolicy: IfNeeded`
    pub reinvoked: bool,
    /// Nothing happens in it that a dry run must not cause.
    pub safe_in_dry_run: bool,
    pub timeout: Duration,
    /// `v1` or `v1beta1`: the first version listed that we speak.
    pub review_version: &'static str,
    pub client: Option<backend::Config>,
}

/// Which writes something is for, webhook or policy, before any condition is asked (`MatchResources`).
#[derive(Debug)]
pub struct Criteria {
    pub rules: Vec<Rule>,
    /// Writes that are left out, whatever `rules` says (policies only).
    pub excluded: Vec<Rule>,
    /// No rule at all is for everything (policies), and not for nothing (webhooks).
    pub all_without_rules: bool,
    /// `matchPolicy: Exact`: other versions of a resource are none of its business.
    pub exact: bool,
    pub namespaces: LabelSelector,
    pub objects: LabelSelector,
}

impl Criteria {
    /// What a policy's `matchConstraints` or its binding's `matchResources` say.
    pub fn of_policy(resources: &Value) -> Self {
        let rules = |key: &str| resources[key].as_array().into_iter().flatten().map(rule).collect();
        Criteria {
            rules: rules("resourceRules"),
            excluded: rules("excludeResourceRules"),
            all_without_rules: true,
            exact: meta::str_at(resources, &["matchPolicy"]) == "Exact",
            namespaces: selector(resources, "namespaceSelector"),
            objects: selector(resources, "objectSelector"),
        }
    }

    fn of_webhook(hook: &Value) -> Self {
        Criteria {
            rules: hook["rules"].as_array().into_iter().flatten().map(rule).collect(),
            excluded: Vec::new(),
            all_without_rules: false,
            exact: meta::str_at(hook, &["matchPolicy"]) == "Exact",
            namespaces: selector(hook, "namespaceSelector"),
            objects: selector(hook, "objectSelector"),
        }
    }
}

fn selector(from: &Value, key: &str) -> LabelSelector {
    match from.get(key) {
        None | Some(Value::Null) => LabelSelector::from_requirements(Vec::new()),
        // Stored ones are valid; one that is not matches nothing.
        Some(selector) => LabelSelector::from_value(selector).unwrap_or(LabelSelector::NOTHING),
    }
}

/// A `RuleWithOperations`, or a `NamedRuleWithOperations`.
#[derive(Debug)]
pub struct Rule {
    pub operations: Vec<String>,
    pub groups: Vec<String>,
    pub versions: Vec<String>,
    /// `pods`, `pods/status`, `*`, `*/*`, …
    pub resources: Vec<String>,
    pub scope: Option<Scope>,
    /// `resourceNames`: empty for any.
    pub names: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Cluster,
    Namespaced,
}

/// The hooks of a configuration object.
pub fn hooks(configuration: &Value) -> Vec<Arc<Hook>> {
    let name = meta::name(configuration);
    let listed = configuration["webhooks"].as_array().into_iter().flatten();
    listed.enumerate().map(|(index, hook)| Arc::new(compile(name, index, hook))).collect()
}

fn compile(configuration: &str, index: usize, hook: &Value) -> Hook {
    let text = |key: &str| meta::str_at(hook, &[key]);
    let conditions = hook["matchConditions"].as_array().into_iter().flatten();
    let seconds = hook["timeoutSeconds"].as_u64().unwrap_or(10);
    let versions = meta::strings(hook.get("admissionReviewVersions"));
    Hook {
        name: text("name").to_owned(),
        configuration: configuration.to_owned(),
        id: format!("{configuration}/{index}/{}", text("name")),
        criteria: Criteria::of_webhook(hook),
        conditions: conditions
            .map(|condition| Expression::compile(meta::str_at(condition, &["expression"]), &VARIABLES))
            .collect(),
        fails_open: text("failurePolicy") == "Ignore",
        reinvoked: text("reinvocationPolicy") == "IfNeeded",
        safe_in_dry_run: matches!(text("sideEffects"), "None" | "NoneOnDryRun"),
        timeout: Duration::from_secs(seconds),
        review_version: if versions.iter().find(|v| matches!(**v, "v1" | "v1beta1")) == Some(&"v1beta1") {
            "v1beta1"
        } else {
            "v1"
        },
        client: backend::Config::parse(&hook["clientConfig"]),
    }
}

fn rule(rule: &Value) -> Rule {
    let list = |key: &str| meta::strings(rule.get(key)).into_iter().map(str::to_owned).collect();
    let scope = match meta::str_at(rule, &["scope"]) {
        "Cluster" => Some(Scope::Cluster),
        "Namespaced" => Some(Scope::Namespaced),
        _ => None,
    };
    Rule {
        operations: list("operations"),
        groups: list("apiGroups"),
        versions: list("apiVersions"),
        resources: list("resources"),
        scope,
        names: list("resourceNames"),
    }
}

/// Kinds that decide about admission are decided about by no webhook: one could lock its own configuration.
pub fn exempt(row: &ResourceRow) -> bool {
    const KINDS: [&str; 6] = [
        "mutatingadmissionpolicies",
        "mutatingadmissionpolicybindings",
        "mutatingwebhookconfigurations",
        "validatingadmissionpolicies",
        "validatingadmissionpolicybindings",
        "validatingwebhookconfigurations",
    ];
    &*row.group == "admissionregistration.k8s.io" && KINDS.contains(&&*row.plural)
}
