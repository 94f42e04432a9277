//! The expressions of policies: which variables they see, what they must come to, and what they may cost.
//!
//! The only file here that knows the engine.

use std::cell::{Cell, OnceCell};
use std::sync::Arc;

use apimachinery::Value;
use kube_cel::cel::Value as CelValue;

use crate::authz::Authorizer;
use crate::cel::{self, Expression};
use crate::request::{RequestInfo, UserInfo};

/// What all expressions of one kind (validations and their messages, audit annotations, one mutation) may cost together.
pub const BUDGET: u64 = 10_000_000;
/// What the match conditions of one policy may cost together.
pub const CONDITIONS_BUDGET: u64 = 2_500_000;

/// What an expression is for, and so what it must come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// A condition or a validation.
    Bool,
    /// A `messageExpression`: text. Does not see `authorizer`.
    Message,
    /// An audit annotation's value: text or null.
    Annotation,
    /// An `Object{…}`.
    ApplyConfiguration,
    /// A list of `JSONPatch{…}`.
    JsonPatch,
}

/// An expression, or why it cannot be evaluated: said to whoever would.
#[derive(Debug)]
pub struct Compiled {
    source: Box<str>,
    program: Result<Expression, String>,
}

impl Compiled {
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Why it does not compile, as upstream's validation says it.
    pub fn fault(&self) -> Option<&str> {
        self.program.as_ref().err().map(String::as_str)
    }
}

/// What the expressions of one policy may speak of.
#[derive(Debug)]
pub struct Environment {
    has_params: bool,
    is_composed: bool,
    variables: Vec<(Box<str>, Compiled)>,
}

impl Environment {
    /// `has_params`: the policy has a `paramKind`; `is_composed`: its expressions may read `variables`.
    pub fn new(has_params: bool, is_composed: bool) -> Self {
        Environment { has_params, is_composed, variables: Vec::new() }
    }

    /// Makes a variable known to the expressions that are compiled after it. The error is why it does not compile; it is known all the same.
    pub fn add_variable(&mut self, name: &str, source: &str) -> Result<(), String> {
        let compiled = self.compile_as(source, true, false);
        let fault = compiled.fault().map(str::to_owned);
        self.variables.push((name.into(), compiled));
        fault.map_or(Ok(()), Err)
    }

    pub fn compile(&self, source: &str, want: Want) -> Compiled {
        self.compile_as(source, want != Want::Message, matches!(want, Want::ApplyConfiguration | Want::JsonPatch))
    }

    fn compile_as(&self, source: &str, authorizer: bool, makes_objects: bool) -> Compiled {
        let mut names = vec!["object", "oldObject", "request", "namespaceObject"];
        if self.is_composed {
            names.push("variables");
        }
        if self.has_params {
            names.push("params");
        }
        if authorizer {
            names.push("authorizer");
        }
        let makes = if makes_objects { is_patch_type } else { |_: &str| false };
        let program =
            Expression::compile_making(source, &names, makes).map_err(|why| format!("compilation failed: {why}"));
        Compiled { source: source.into(), program }
    }
}

/// The types that mutations are made of.
fn is_patch_type(name: &str) -> bool {
    name == "JSONPatch" || name == "Object" || name.starts_with("Object.")
}

/// What a policy is evaluated over.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    pub object: &'a Value,
    pub old: &'a Value,
    pub request: &'a Value,
    /// Null for none.
    pub namespace: &'a Value,
    /// Null for none.
    pub params: &'a Value,
    pub authorizer: &'a Arc<Authorizer>,
    pub user: &'a Arc<UserInfo>,
    /// What the write is about, for `authorizer.requestResource`.
    pub resource: &'a RequestInfo,
}

/// What an expression came to.
#[derive(Debug, PartialEq)]
pub enum Outcome {
    Bool(bool),
    Text(String),
    Null,
    /// What a mutation is made of: an applied configuration, or the operations of a JSON patch.
    Json(Value),
    /// Anything else, by the name of its type.
    Other(String),
}

impl Outcome {
    pub fn type_name(&self) -> &str {
        match self {
            Outcome::Bool(_) => "bool",
            Outcome::Text(_) => "string",
            Outcome::Null => "null_type",
            Outcome::Json(_) => "object",
            Outcome::Other(name) => name,
        }
    }
}

/// Why there is no outcome.
#[derive(Debug, PartialEq)]
#[expect(dead_code, reason = "the engine has no costs yet")]
pub enum Fault {
    /// Of this expression alone.
    Expression(String),
    /// The budget is spent: nothing is evaluated any more.
    Budget,
}

impl Fault {
    pub fn message(&self) -> &str {
        match self {
            Fault::Expression(why) => why,
            Fault::Budget => {
                "validation failed due to running out of cost budget, no further validation rules will be run"
            }
        }
    }
}

/// Evaluations over the same inputs: each variable of the policy is evaluated at most once, when it is first read.
pub struct Evaluation<'a> {
    environment: &'a Environment,
    inputs: Vec<(&'static str, CelValue)>,
    variables: Vec<OnceCell<Result<CelValue, String>>>,
    budget: Cell<u64>,
}

impl<'a> Evaluation<'a> {
    pub fn new(environment: &'a Environment, inputs: &Inputs<'_>, budget: u64) -> Self {
        let inputs = vec![
            ("object", cel::from_json(inputs.object)),
            ("oldObject", cel::from_json(inputs.old)),
            ("request", cel::from_json(inputs.request)),
            ("namespaceObject", cel::from_json(inputs.namespace)),
            ("params", cel::from_json(inputs.params)),
            ("authorizer", cel::authorizer(inputs.authorizer, inputs.user)),
            (cel::REQUEST_RESOURCE, cel::request_resource(inputs.authorizer, inputs.user, inputs.resource.clone())),
        ];
        let variables = environment.variables.iter().map(|_| OnceCell::new()).collect();
        Evaluation { environment, inputs, variables, budget: Cell::new(budget) }
    }

    /// What is left to spend.
    pub fn budget(&self) -> u64 {
        self.budget.get()
    }

    pub fn run(&self, compiled: &Compiled) -> Result<Outcome, Fault> {
        let program = match &compiled.program {
            Ok(program) => program,
            Err(why) => return Err(Fault::Expression(format!("compilation error: {why}"))),
        };
        let value = self
            .evaluate(program, self.variables.len())
            .map_err(|why| Fault::Expression(format!("expression '{}' resulted in error: {why}", compiled.source)))?;
        Ok(match value {
            CelValue::Bool(flag) => Outcome::Bool(flag),
            CelValue::String(text) => Outcome::Text(text.to_string()),
            CelValue::Null => Outcome::Null,
            value @ (CelValue::Map(_) | CelValue::List(_)) => mutation(&value)?,
            other => Outcome::Other(other.type_of().to_string()),
        })
    }

    /// `known`: as many variables may be read.
    fn evaluate(&self, program: &Expression, known: usize) -> Result<CelValue, String> {
        let mut scope = self.inputs.clone();
        let mut failed = Vec::new();
        if program.mentions("variables") {
            let mut map = std::collections::HashMap::new();
            for (index, (name, compiled)) in self.environment.variables.iter().enumerate().take(known) {
                if !compiled_mentions(program, name) {
                    continue;
                }
                match self.variable(index, name, compiled) {
                    Ok(value) => drop(map.insert(name.to_string(), value)),
                    Err(why) => failed.push((name.clone(), why)),
                }
            }
            scope.push(("variables", CelValue::from(map)));
        }
        program.evaluate(&scope).map_err(|why| {
            let missing = |name: &str| why == format!("no such key: {name}");
            failed.into_iter().find(|(name, _)| missing(name)).map_or(why.clone(), |(_, why)| why)
        })
    }

    fn variable(&self, index: usize, name: &str, compiled: &Compiled) -> Result<CelValue, String> {
        self.variables[index]
            .get_or_init(|| match &compiled.program {
                Err(why) => Err(format!("composited variable {name:?} fails to compile: {why}")),
                Ok(program) => self
                    .evaluate(program, index)
                    .map_err(|why| format!("composited variable {name:?} fails to evaluate: {why}")),
            })
            .clone()
    }
}

/// What a mutation's expression has made, without the marks of types, which must be those of the places where the objects stand.
fn mutation(value: &CelValue) -> Result<Outcome, Fault> {
    let json = cel::to_json(value).ok_or_else(|| {
        Fault::Expression("JSONPath valueExpression evaluated to a type that could not marshal to JSON".to_owned())
    })?;
    let mut faults = Vec::new();
    let plain = match json {
        Value::Array(operations) => {
            operations.into_iter().map(|operation| unmarked(operation, None, &mut faults)).collect()
        }
        Value::Object(made) if made.contains_key(cel::TYPE) => unmarked(Value::Object(made), None, &mut faults),
        _ => return Ok(Outcome::Other("map".to_owned())),
    };
    if faults.is_empty() {
        return Ok(Outcome::Json(plain));
    }
    Err(Fault::Expression(format!("type mismatch: {}", faults.join("\n"))))
}

/// `place`: the type that an object must have here; `None` for any, as the values of a patch's operations.
fn unmarked(value: Value, place: Option<&str>, faults: &mut Vec<String>) -> Value {
    match value {
        Value::Object(mut map) => {
            let Some(name) = map.remove(cel::TYPE) else {
                let each = map.into_iter().map(|(key, value)| (key, unmarked(value, place, faults)));
                return Value::Object(each.collect());
            };
            let name = name.as_str().unwrap_or_default();
            if let Some(place) = place.filter(|place| *place != name) {
                faults.push(format!(
                    "unexpected type name {name:?}, expected {place:?}, which matches field name path from root Object type"
                ));
            }
            let below = place.unwrap_or(name);
            let is_patch = name == "JSONPatch";
            let each = map.into_iter().map(|(key, value)| {
                let place = format!("{below}.{key}");
                (key, unmarked(value, (!is_patch).then_some(place.as_str()), faults))
            });
            Value::Object(each.collect())
        }
        Value::Array(items) => items.into_iter().map(|item| unmarked(item, place, faults)).collect(),
        other => other,
    }
}

fn compiled_mentions(program: &Expression, name: &str) -> bool {
    program.source().contains(name)
}
