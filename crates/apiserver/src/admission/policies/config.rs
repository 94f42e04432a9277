//! Policies and bindings, compiled.

use std::collections::BTreeSet;

use apimachinery::selector::label::LabelSelector;
use apimachinery::{Value, meta};

use super::expressions::{Compiled, Environment, Want};
use crate::admission::webhooks::Criteria;

/// A ValidatingAdmissionPolicy, which has validations and audit annotations, or a MutatingAdmissionPolicy, which has mutations.
#[derive(Debug)]
pub struct Policy {
    pub name: String,
    /// Of whose `spec` this is made.
    uid: String,
    generation: i64,
    /// None only of an object that was stored without validation.
    pub criteria: Option<Criteria>,
    /// Plural names of the resources that the rules speak of; `None` for all.
    pub plurals: Option<BTreeSet<Box<str>>>,
    pub param_kind: Option<ParamKind>,
    /// `failurePolicy: Ignore`
    pub fails_open: bool,
    pub environment: Environment,
    pub conditions: Vec<Compiled>,
    pub validations: Vec<Validation>,
    pub annotations: Vec<Annotation>,
    pub mutations: Vec<Mutation>,
    /// `reinvocationPolicy: IfNeeded`
    pub reinvoked: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamKind {
    pub group: String,
    pub version: String,
    pub kind: String,
}

impl std::fmt::Display for ParamKind {
    /// As Go prints a GroupVersionKind.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}, Kind={}", self.group, self.version, self.kind)
    }
}

impl ParamKind {
    /// `spec.paramKind` of a policy, if it has one.
    pub fn of(policy: &Value) -> Option<Self> {
        let kind = policy["spec"].get("paramKind").filter(|kind| !kind.is_null())?;
        let api_version = meta::str_at(kind, &["apiVersion"]);
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let owned = str::to_owned;
        Some(ParamKind { group: owned(group), version: owned(version), kind: owned(meta::str_at(kind, &["kind"])) })
    }
}

#[derive(Debug)]
pub struct Validation {
    pub expression: Compiled,
    pub message: String,
    pub message_expression: Option<Compiled>,
    /// What the refusal is for; empty for `Invalid`.
    pub reason: String,
}

#[derive(Debug)]
pub struct Annotation {
    pub key: String,
    pub value: Compiled,
}

#[derive(Debug)]
pub enum Mutation {
    ApplyConfiguration(Compiled),
    JsonPatch(Compiled),
}

impl Policy {
    pub fn compile(policy: &Value) -> Self {
        let spec = &policy["spec"];
        let list = |key: &str| spec[key].as_array().into_iter().flatten();
        let param_kind = ParamKind::of(policy);
        let mut environment = Environment::new(param_kind.is_some(), true);
        for variable in list("variables") {
            // What is wrong with a variable is told to whoever reads it.
            let _ = environment.add_variable(text(variable, "name"), text(variable, "expression"));
        }
        let compiled = |source: &str, want: Want| environment.compile(source, want);
        let conditions = list("matchConditions").map(|c| compiled(text(c, "expression"), Want::Bool)).collect();
        let validations = list("validations").map(|validation| Validation {
            expression: compiled(text(validation, "expression"), Want::Bool),
            message: text(validation, "message").to_owned(),
            message_expression: Some(text(validation, "messageExpression"))
                .filter(|source| !source.is_empty())
                .map(|source| compiled(source, Want::Message)),
            reason: text(validation, "reason").to_owned(),
        });
        let annotations = list("auditAnnotations").map(|annotation| Annotation {
            key: text(annotation, "key").to_owned(),
            value: compiled(text(annotation, "valueExpression"), Want::Annotation),
        });
        let mutations = list("mutations").map(|mutation| match text(mutation, "patchType") {
            "JSONPatch" => Mutation::JsonPatch(compiled(text(&mutation["jsonPatch"], "expression"), Want::JsonPatch)),
            _ => Mutation::ApplyConfiguration(compiled(
                text(&mutation["applyConfiguration"], "expression"),
                Want::ApplyConfiguration,
            )),
        });
        let (validations, annotations, mutations) = (validations.collect(), annotations.collect(), mutations.collect());
        Policy {
            name: meta::name(policy).to_owned(),
            uid: meta::uid(policy).to_owned(),
            generation: meta::generation(policy),
            criteria: spec.get("matchConstraints").filter(|one| !one.is_null()).map(Criteria::of_policy),
            plurals: plurals(&spec["matchConstraints"]),
            param_kind,
            fails_open: text(spec, "failurePolicy") == "Ignore",
            conditions,
            validations,
            annotations,
            mutations,
            reinvoked: text(spec, "reinvocationPolicy") == "IfNeeded",
            environment,
        }
    }

    /// Whether this was compiled from the same `spec` as `policy` has.
    pub fn is_of(&self, policy: &Value) -> bool {
        self.generation != 0 && self.generation == meta::generation(policy) && self.uid == meta::uid(policy)
    }
}

fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    meta::str_at(object, &[key])
}

fn plurals(constraints: &Value) -> Option<BTreeSet<Box<str>>> {
    let rules = constraints["resourceRules"].as_array().filter(|rules| !rules.is_empty())?;
    let patterns = rules.iter().flat_map(|rule| meta::strings(rule.get("resources")));
    let plurals = patterns.map(|pattern| pattern.split('/').next().unwrap_or_default());
    // One pattern for all makes the rest say nothing.
    plurals.map(|plural| (plural != "*").then(|| plural.into())).collect()
}

#[derive(Debug)]
pub struct Binding {
    pub name: String,
    pub policy_name: String,
    pub criteria: Option<Criteria>,
    pub params: Option<ParamRef>,
    /// `validationActions`, as they stand there.
    pub actions: Vec<String>,
}

#[derive(Debug)]
pub struct ParamRef {
    /// Empty where params are selected.
    pub name: String,
    /// Empty for that of the request.
    pub namespace: String,
    pub selector: Option<Result<LabelSelector, String>>,
    /// `parameterNotFoundAction: Deny`
    pub must_exist: bool,
}

impl Binding {
    pub fn new(binding: &Value) -> Self {
        let spec = &binding["spec"];
        let given = |key: &str| spec.get(key).filter(|value| !value.is_null());
        Binding {
            name: meta::name(binding).to_owned(),
            policy_name: text(spec, "policyName").to_owned(),
            criteria: given("matchResources").map(Criteria::of_policy),
            params: given("paramRef").map(|params| ParamRef {
                name: text(params, "name").to_owned(),
                namespace: text(params, "namespace").to_owned(),
                selector: params
                    .get("selector")
                    .filter(|selector| !selector.is_null())
                    .map(|selector| LabelSelector::from_value(selector).map_err(|error| error.to_string())),
                must_exist: text(params, "parameterNotFoundAction") == "Deny",
            }),
            actions: meta::strings(spec.get("validationActions")).into_iter().map(str::to_owned).collect(),
        }
    }
}
