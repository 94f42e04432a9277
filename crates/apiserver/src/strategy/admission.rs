//! Admission policies and their bindings: upstream's validation, and who may refer to which params. What becomes of them is
//! `crate::admission::policies`' work.

use std::sync::Arc;

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::selector::label;
use apimachinery::{Value, meta, names};
use serde_json::json;

use super::admission_params::{authorize_binding, authorize_policy};
use super::common::{items, path_of};
use super::webhooks::validate_rule;
use super::{Context, Family, Part, Services, Strategy};
use crate::admission::policies::{Environment, Want};

pub fn strategies(services: &Arc<Services>) -> Family {
    const GROUP: &str = "admissionregistration.k8s.io";
    let policy = |mutating| Arc::new(Policy { services: services.clone(), mutating });
    let binding = |mutating| Arc::new(Binding { services: services.clone(), mutating });
    vec![
        (GROUP, "mutatingadmissionpolicies", policy(true)),
        (GROUP, "validatingadmissionpolicies", policy(false)),
        (GROUP, "mutatingadmissionpolicybindings", binding(true)),
        (GROUP, "validatingadmissionpolicybindings", binding(false)),
    ]
}

struct Policy {
    services: Arc<Services>,
    mutating: bool,
}

struct Binding {
    services: Arc<Services>,
    mutating: bool,
}

/// Upstream's limit on match conditions.
const CONDITIONS_MAX: usize = 64;
/// Upstream's `maxAuditAnnotations`.
const ANNOTATIONS_MAX: usize = 20;
/// Upstream's `maxAuditAnnotationValueExpressionLength`, in bytes.
const ANNOTATION_EXPRESSION_MAX: usize = 5 * 1024;
const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
/// A deletion has no object that could be changed.
const MUTATING_OPERATIONS: [&str; 4] = ["*", "CONNECT", "CREATE", "UPDATE"];
const FAILURE_POLICIES: [&str; 2] = ["Fail", "Ignore"];
const MATCH_POLICIES: [&str; 2] = ["Equivalent", "Exact"];
const REINVOCATION_POLICIES: [&str; 2] = ["IfNeeded", "Never"];
const REASONS: [&str; 3] = ["Forbidden", "Invalid", "RequestEntityTooLarge"];
const ACTIONS: [&str; 3] = ["Audit", "Deny", "Warn"];
const PATCH_TYPES: [&str; 2] = ["ApplyConfiguration", "JSONPatch"];
const SCOPES: [&str; 3] = ["*", "Cluster", "Namespaced"];

impl Strategy for Policy {
    fn validate(&self, cx: &Context<'_>, part: Part, object: &Value, old: Option<&Value>) -> ErrorList {
        if part == Part::Status {
            return validate_status(object);
        }
        let mut check = Check { mutating: self.mutating, errors: ErrorList::new() };
        check.policy(object, old);
        if check.errors.is_empty()
            && let Err(why) = authorize_policy(&self.services.authorizer, cx, object, old)
        {
            check.errors.push(Error::forbidden(&path_of(&["spec", "paramKind"]), &why));
        }
        check.errors
    }
}

impl Strategy for Binding {
    fn validate(&self, cx: &Context<'_>, _part: Part, object: &Value, old: Option<&Value>) -> ErrorList {
        let mut check = Check { mutating: self.mutating, errors: ErrorList::new() };
        check.binding(&object["spec"]);
        if check.errors.is_empty()
            && let Err(why) = authorize_binding(&self.services.authorizer, cx, self.mutating, object, old)
        {
            check.errors.push(Error::forbidden(&path_of(&["spec", "paramRef"]), &why));
        }
        check.errors
    }
}

fn validate_status(object: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let at = path_of(&["status", "typeChecking", "expressionWarnings"]);
    for (index, warning) in items(&object["status"]["typeChecking"], "expressionWarnings").enumerate() {
        for key in ["warning", "fieldRef"] {
            if meta::str_at(warning, &[key]).trim().is_empty() {
                errors.push(Error::required(&at.index(index).child(key), ""));
            }
        }
    }
    errors
}

fn given<'a>(object: &'a Value, key: &str) -> Option<&'a Value> {
    object.get(key).filter(|value| !value.is_null())
}

fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    meta::str_at(object, &[key])
}

/// One validation: the errors so far.
struct Check {
    mutating: bool,
    errors: ErrorList,
}

impl Check {
    fn required(&mut self, at: &Path, why: &str) {
        self.errors.push(Error::required(at, why));
    }

    fn invalid(&mut self, at: &Path, value: &str, why: &str) {
        self.errors.push(Error::invalid(at, &json!(value), why));
    }

    /// A field that must be there and have one of these values.
    fn one_of(&mut self, object: &Value, key: &str, values: &[&str], at: &Path) {
        match text(object, key) {
            "" => self.required(&at.child(key), ""),
            value if !values.contains(&value) => {
                self.errors.push(Error::not_supported(&at.child(key), &json!(value), values));
            }
            _ => {}
        }
    }

    fn policy(&mut self, policy: &Value, old: Option<&Value>) {
        let (spec, at) = (&policy["spec"], Path::new("spec"));
        self.one_of(spec, "failurePolicy", &FAILURE_POLICIES, &at);
        let params = given(spec, "paramKind");
        if let Some(kind) = params {
            self.param_kind(kind, &at.child("paramKind"));
        }
        self.constraints(spec, &at.child("matchConstraints"));
        // As upstream, conditions are looked at again only where they, or what they see, have changed.
        let same = |old: &Value| ["paramKind", "matchConditions"].iter().all(|key| old["spec"][*key] == spec[*key]);
        if !old.is_some_and(same) {
            self.conditions(spec, params.is_some(), &at.child("matchConditions"));
        }
        let is_composed = self.mutating || items(spec, "variables").next().is_some();
        let mut environment = Environment::new(params.is_some(), is_composed);
        for (index, variable) in items(spec, "variables").enumerate() {
            self.variable(variable, &mut environment, &at.child("variables").index(index));
        }
        if self.mutating {
            self.mutations(spec, &environment, &at);
            return self.one_of(spec, "reinvocationPolicy", &REINVOCATION_POLICIES, &at);
        }
        if items(spec, "validations").next().is_none() && items(spec, "auditAnnotations").next().is_none() {
            let why = "validations or auditAnnotations must contain at least one item";
            self.required(&at.child("validations"), why);
            return self.required(&at.child("auditAnnotations"), why);
        }
        for (index, validation) in items(spec, "validations").enumerate() {
            self.validation(validation, &environment, &at.child("validations").index(index));
        }
        self.annotations(meta::name(policy), spec, &environment, &at.child("auditAnnotations"));
    }

    fn param_kind(&mut self, params: &Value, at: &Path) {
        let (api_version, kind) = (text(params, "apiVersion"), text(params, "kind"));
        let (version_at, kind_at) = (at.child("apiVersion"), at.child("kind"));
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        if api_version.is_empty() {
            self.required(&version_at, "");
        } else if version.contains('/') {
            self.invalid(&version_at, api_version, &format!("unexpected GroupVersion string: {api_version}"));
        } else {
            let faults = if group.is_empty() { Vec::new() } else { names::dns1123_subdomain(group) };
            if !faults.is_empty() {
                self.invalid(&version_at, group, &faults.join(","));
            }
            let faults = names::dns1035_label(version);
            if version.is_empty() {
                self.invalid(&version_at, api_version, "version must be specified");
            } else if !faults.is_empty() {
                self.invalid(&version_at, version, &faults.join(","));
            }
        }
        let faults = names::dns1035_label(&kind.to_lowercase());
        if kind.is_empty() {
            self.required(&kind_at, "");
        } else if !faults.is_empty() {
            let why = format!("may have mixed case, but should otherwise match: {}", faults.join(","));
            self.invalid(&kind_at, kind, &why);
        }
    }

    fn constraints(&mut self, spec: &Value, at: &Path) {
        let Some(constraints) = given(spec, "matchConstraints") else { return self.required(at, "") };
        self.match_resources(constraints, at);
        if items(constraints, "resourceRules").next().is_none() {
            self.required(&at.child("resourceRules"), "");
        }
        self.mutating_operations(constraints, at);
    }

    /// Mutating policies match no deletion.
    fn mutating_operations(&mut self, resources: &Value, at: &Path) {
        let rules = items(resources, "resourceRules").filter(|_| self.mutating);
        let operations = rules.flat_map(|rule| meta::strings(rule.get("operations")));
        let wrong = operations.filter(|operation| !MUTATING_OPERATIONS.contains(operation));
        let at = at.child("resourceRules").child("operations");
        self.errors.extend(wrong.map(|one| Error::not_supported(&at, &json!(one), &MUTATING_OPERATIONS)));
    }

    fn match_resources(&mut self, resources: &Value, at: &Path) {
        self.one_of(resources, "matchPolicy", &MATCH_POLICIES, at);
        for key in ["namespaceSelector", "objectSelector"] {
            match given(resources, key) {
                None => self.required(&at.child(key), ""),
                Some(selector) => self.errors.extend(label::validate(selector, &at.child(key))),
            }
        }
        for list in ["resourceRules", "excludeResourceRules"] {
            for (index, rule) in items(resources, list).enumerate() {
                self.rule(rule, &at.child(list).index(index));
            }
        }
    }

    fn rule(&mut self, rule: &Value, at: &Path) {
        let names = meta::strings(rule.get("resourceNames"));
        for (index, name) in names.iter().enumerate() {
            let at = at.child("resourceNames").index(index);
            for why in names::path_segment_name(name) {
                self.invalid(&at, name, &why);
            }
            if names[..index].contains(name) {
                self.errors.push(Error::duplicate(&at, &json!(name)));
            }
        }
        for list in ["operations", "apiGroups", "apiVersions", "resources"] {
            if items(rule, list).next().is_none() {
                self.required(&at.child(list), "");
            }
        }
        for (index, operation) in meta::strings(rule.get("operations")).into_iter().enumerate() {
            if !OPERATIONS.contains(&operation) {
                let at = at.child("operations").index(index);
                self.errors.push(Error::not_supported(&at, &json!(operation), &OPERATIONS));
            }
        }
        validate_rule(rule, at, &mut self.errors);
        if let Some(scope) = rule["scope"].as_str().filter(|scope| !SCOPES.contains(scope)) {
            self.errors.push(Error::not_supported(&at.child("scope"), &json!(scope), &SCOPES));
        }
    }

    fn conditions(&mut self, spec: &Value, params: bool, at: &Path) {
        let environment = Environment::new(params, false);
        let count = items(spec, "matchConditions").count();
        if count > CONDITIONS_MAX {
            self.errors.push(Error::too_many(at, count, CONDITIONS_MAX));
        }
        let mut seen: Vec<&str> = Vec::new();
        for (index, condition) in items(spec, "matchConditions").enumerate() {
            let at = at.index(index);
            match text(condition, "expression").trim() {
                "" => self.required(&at.child("expression"), ""),
                source => self.compile(&environment, source, source, Want::Bool, &at.child("expression")),
            }
            let (name, at) = (text(condition, "name"), at.child("name"));
            if name.is_empty() {
                self.required(&at, "");
                continue;
            }
            for why in names::qualified_name(name) {
                self.invalid(&at, name, &why);
            }
            if seen.contains(&name) {
                self.errors.push(Error::duplicate(&at, &json!(name)));
            }
            seen.push(name);
        }
    }

    /// `shown` is what the error shows as the value.
    fn compile(&mut self, environment: &Environment, source: &str, shown: &str, want: Want, at: &Path) {
        if let Some(why) = environment.compile(source, want).fault() {
            self.invalid(at, shown, why);
        }
    }

    fn variable(&mut self, variable: &Value, environment: &mut Environment, at: &Path) {
        let (name, source) = (text(variable, "name"), text(variable, "expression"));
        if name.trim().is_empty() {
            self.required(&at.child("name"), "name is not specified");
        } else if !is_identifier(name) {
            self.invalid(&at.child("name"), name, "must be a valid CEL identifier");
        }
        if source.trim().is_empty() {
            self.required(&at.child("expression"), "expression is not specified");
        } else if let Err(why) = environment.add_variable(name, source) {
            self.invalid(&at.child("expression"), source, &why);
        }
    }

    fn validation(&mut self, validation: &Value, environment: &Environment, at: &Path) {
        let (source, message) = (text(validation, "expression"), text(validation, "message"));
        if source.trim().is_empty() {
            self.required(&at.child("expression"), "expression is not specified");
        } else {
            self.compile(environment, source, source, Want::Bool, &at.child("expression"));
        }
        let source = text(validation, "messageExpression");
        if !source.is_empty() && source.trim().is_empty() {
            self.invalid(&at.child("messageExpression"), source, "must be non-empty if specified");
        } else if !source.is_empty() {
            self.compile(environment, source, source, Want::Message, &at.child("messageExpression"));
        }
        if !message.is_empty() && message.trim().is_empty() {
            self.invalid(&at.child("message"), message, "must be non-empty if specified");
        } else if message.trim().contains(['\n', '\r']) {
            self.invalid(&at.child("message"), message, "must not contain line breaks");
        }
        if let Some(reason) = validation["reason"].as_str().filter(|reason| !REASONS.contains(reason)) {
            self.errors.push(Error::not_supported(&at.child("reason"), &json!(reason), &REASONS));
        }
    }

    fn annotations(&mut self, policy: &str, spec: &Value, environment: &Environment, at: &Path) {
        let count = items(spec, "auditAnnotations").count();
        if count > ANNOTATIONS_MAX {
            let why = format!("must not have more than {ANNOTATIONS_MAX} auditAnnotations");
            self.errors.push(Error::invalid(at, &spec["auditAnnotations"], &why));
        }
        let mut seen: Vec<&str> = Vec::new();
        for (index, annotation) in items(spec, "auditAnnotations").enumerate() {
            let at = at.index(index);
            let (key, key_at) = (text(annotation, "key"), at.child("key"));
            if policy.is_empty() {
                self.invalid(&key_at, key, "requires metadata.name be non-empty");
            } else {
                let name = format!("{policy}/{key}");
                for why in names::qualified_name(&name) {
                    self.invalid(&key_at, &name, &why);
                }
            }
            let (source, at) = (text(annotation, "valueExpression"), at.child("valueExpression"));
            match source.trim() {
                "" => self.required(&at, "valueExpression is not specified"),
                trimmed if trimmed.len() > ANNOTATION_EXPRESSION_MAX => {
                    self.required(&at, &format!("must not exceed {ANNOTATION_EXPRESSION_MAX} bytes in length"));
                }
                trimmed => self.compile(environment, trimmed, source, Want::Annotation, &at),
            }
            if seen.contains(&key) {
                self.errors.push(Error::duplicate(&key_at, &json!(key)));
            }
            seen.push(key);
        }
    }

    fn mutations(&mut self, spec: &Value, environment: &Environment, at: &Path) {
        let at = at.child("mutations");
        if items(spec, "mutations").next().is_none() {
            return self.required(&at, "mutations must contain at least one item");
        }
        for (index, mutation) in items(spec, "mutations").enumerate() {
            let at = at.index(index);
            let (apply, patch) = (("applyConfiguration", Want::ApplyConfiguration), ("jsonPatch", Want::JsonPatch));
            let (wanted, other) = match text(mutation, "patchType") {
                "ApplyConfiguration" => (apply, patch),
                "JSONPatch" => (patch, apply),
                _ => {
                    self.one_of(mutation, "patchType", &PATCH_TYPES, &at);
                    continue;
                }
            };
            let kind = text(mutation, "patchType");
            let (key, want) = wanted;
            match given(mutation, key) {
                None => {
                    self.required(&at.child(key), &format!("must be specified when patchType is {kind}"));
                }
                Some(body) => match text(body, "expression").trim() {
                    "" => self.required(&at.child(key).child("expression"), ""),
                    source => self.compile(environment, source, source, want, &at.child(key).child("expression")),
                },
            }
            let (key, _) = other;
            if given(mutation, key).is_some() {
                let why = format!("must not be specified when patchType is {kind}");
                self.invalid(&at.child(key), &format!("{{{key}}}"), &why);
            }
        }
    }

    fn binding(&mut self, spec: &Value) {
        let at = Path::new("spec");
        let name = text(spec, "policyName");
        if name.is_empty() {
            self.required(&at.child("policyName"), "");
        } else {
            for why in names::dns1123_subdomain(name) {
                self.invalid(&at.child("policyName"), name, &why);
            }
        }
        if let Some(params) = given(spec, "paramRef") {
            self.param_ref(params, &at.child("paramRef"));
        }
        if let Some(resources) = given(spec, "matchResources") {
            self.match_resources(resources, &at.child("matchResources"));
            self.mutating_operations(resources, &at.child("matchResources"));
        }
        if !self.mutating {
            self.actions(spec, &at.child("validationActions"));
        }
    }

    fn param_ref(&mut self, params: &Value, at: &Path) {
        const EXCLUSIVE: &str = "name and selector are mutually exclusive";
        let (name, selector) = (text(params, "name"), given(params, "selector"));
        if !name.is_empty() {
            for why in names::path_segment_name(name) {
                self.invalid(&at.child("name"), name, &why);
            }
            if selector.is_some() {
                self.errors.push(Error::forbidden(&at.child("name"), EXCLUSIVE));
            }
        }
        match selector {
            Some(selector) => {
                self.errors.extend(label::validate(selector, &at.child("selector")));
                if !name.is_empty() {
                    self.errors.push(Error::forbidden(&at.child("selector"), EXCLUSIVE));
                }
            }
            None if name.is_empty() => self.required(at, "one of name or selector must be specified"),
            None => {}
        }
        self.one_of(params, "parameterNotFoundAction", &["Deny", "Allow"], at);
    }

    fn actions(&mut self, spec: &Value, at: &Path) {
        let actions = meta::strings(spec.get("validationActions"));
        for (index, action) in actions.iter().enumerate() {
            if !ACTIONS.contains(action) {
                self.errors.push(Error::not_supported(&at.index(index), &json!(action), &ACTIONS));
            }
            if actions[..index].contains(action) {
                self.errors.push(Error::duplicate(&at.index(index), &json!(action)));
            }
        }
        if actions.contains(&"Deny") && actions.contains(&"Warn") {
            let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and \
                       headers serves no purpose)";
            self.errors.push(Error::invalid(at, &spec["validationActions"], why));
        }
        if actions.is_empty() {
            self.required(at, "at least one validation action is required");
        }
    }
}

fn is_identifier(name: &str) -> bool {
    const RESERVED: [&str; 22] = [
        "as",
        "break",
        "const",
        "continue",
        "else",
        "false",
        "for",
        "function",
        "if",
        "import",
        "in",
        "let",
        "loop",
        "namespace",
        "null",
        "package",
        "return",
        "true",
        "var",
        "void",
        "while",
        "",
    ];
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.chars().all(word) && !name.starts_with(|c: char| c.is_ascii_digit()) && !RESERVED.contains(&name)
}
