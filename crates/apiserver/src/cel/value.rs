//! JSON as CEL values, and what is asked of an expression's tree.

use std::collections::HashMap;
use std::sync::Arc;

use apimachinery::Value;
use kube_cel::cel::common::ast::{EntryExpr, Expr, IdedExpr};
use kube_cel::cel::objects::{Key, Map};
use kube_cel::cel::{ExecutionError, Value as CelValue};

/// A JSON value. Numbers are integers where they can be, as upstream's unstructured objects have them.
pub fn from_json(value: &Value) -> CelValue {
    match value {
        Value::Null => CelValue::Null,
        Value::Bool(flag) => CelValue::Bool(*flag),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => CelValue::Int(number),
            (None, Some(number)) => CelValue::UInt(number),
            (None, None) => CelValue::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => CelValue::String(Arc::new(text.clone())),
        Value::Array(items) => CelValue::List(Arc::new(items.iter().map(from_json).collect())),
        Value::Object(map) => {
            let entry = |(key, value): (&String, &Value)| (Key::String(Arc::new(key.clone())), from_json(value));
            CelValue::Map(Map { map: Arc::new(map.iter().map(entry).collect::<HashMap<_, _>>()) })
        }
    }
}

/// A value as JSON; none of what JSON has no form for.
pub fn to_json(value: &CelValue) -> Option<Value> {
    Some(match value {
        CelValue::Null => Value::Null,
        CelValue::Bool(flag) => Value::Bool(*flag),
        CelValue::Int(number) => Value::from(*number),
        CelValue::UInt(number) => Value::from(*number),
        CelValue::Float(number) => Value::Number(serde_json::Number::from_f64(*number)?),
        CelValue::String(text) => Value::String(text.to_string()),
        CelValue::List(items) => Value::Array(items.iter().map(to_json).collect::<Option<_>>()?),
        CelValue::Map(map) => {
            let entry = |(key, value): (&Key, &CelValue)| match key {
                Key::String(key) => Some((key.to_string(), to_json(value)?)),
                _ => None,
            };
            Value::Object(map.map.iter().map(entry).collect::<Option<_>>()?)
        }
        _ => return None,
    })
}

/// An error of evaluation in cel-go's words, where those are known.
pub fn words(error: &ExecutionError) -> String {
    match error {
        ExecutionError::NoSuchKey(key) => format!("no such key: {key}"),
        ExecutionError::NoSuchOverload
        | ExecutionError::UnsupportedBinaryOperator(..)
        | ExecutionError::ValuesNotComparable(..)
        | ExecutionError::UnsupportedUnaryOperator(..) => "no such overload".to_owned(),
        ExecutionError::IndexOutOfBounds(_) => "index out of bounds".to_owned(),
        ExecutionError::DivisionByZero(_) => "division by zero".to_owned(),
        ExecutionError::RemainderByZero(_) => "modulus by zero".to_owned(),
        ExecutionError::FunctionError { message, .. } => message.clone(),
        other => other.to_string(),
    }
}

/// The variables that an expression takes from outside, in the order in which it names them, each once.
pub fn free_variables(expression: &IdedExpr) -> Vec<&str> {
    let mut found = Vec::new();
    visit(expression, &mut Vec::new(), &mut found);
    found
}

fn visit<'a>(expression: &'a IdedExpr, bound: &mut Vec<&'a str>, found: &mut Vec<&'a str>) {
    match &expression.expr {
        Expr::Ident(name) => {
            if !bound.contains(&name.as_str()) && !found.contains(&name.as_str()) {
                found.push(name);
            }
        }
        Expr::Select(select) => visit(&select.operand, bound, found),
        Expr::Call(call) => {
            // `sets.contains(…)` and the like: the target is a library's name and no variable.
            let library = call
                .target
                .as_deref()
                .is_some_and(|target| matches!(&target.expr, Expr::Ident(name) if LIBRARIES.contains(&name.as_str())));
            if let Some(target) = call.target.as_deref().filter(|_| !library) {
                visit(target, bound, found);
            }
            call.args.iter().for_each(|argument| visit(argument, bound, found));
        }
        Expr::List(list) => list.elements.iter().for_each(|element| visit(element, bound, found)),
        Expr::Map(map) => map.entries.iter().for_each(|entry| visit_entry(&entry.expr, bound, found)),
        Expr::Struct(fields) => fields.entries.iter().for_each(|entry| visit_entry(&entry.expr, bound, found)),
        Expr::Comprehension(each) => {
            visit(&each.iter_range, bound, found);
            visit(&each.accu_init, bound, found);
            let before = bound.len();
            bound.push(&each.iter_var);
            bound.extend(each.iter_var2.as_deref());
            bound.push(&each.accu_var);
            for part in [&each.loop_cond, &each.loop_step, &each.result] {
                visit(part, bound, found);
            }
            bound.truncate(before);
        }
        Expr::Literal(_) | Expr::Unspecified => {}
    }
}

/// Namespaces of functions.
const LIBRARIES: [&str; 8] = ["base64", "cel", "format", "jsonpatch", "lists", "math", "optional", "sets"];

fn visit_entry<'a>(entry: &'a EntryExpr, bound: &mut Vec<&'a str>, found: &mut Vec<&'a str>) {
    match entry {
        EntryExpr::StructField(field) => visit(&field.value, bound, found),
        EntryExpr::MapEntry(entry) => {
            visit(&entry.key, bound, found);
            visit(&entry.value, bound, found);
        }
    }
}

/// Where `word` first stands on its own in `source`, in bytes; the start if nowhere.
pub fn find_word(source: &str, word: &str) -> usize {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
    source
        .match_indices(word)
        .map(|(at, _)| at)
        .find(|at| {
            let before = source[..*at].chars().next_back();
            let after = source[at + word.len()..].chars().next();
            !before.is_some_and(part_of_name) && !after.is_some_and(|c| c.is_alphanumeric() || c == '_')
        })
        .unwrap_or(0)
}
