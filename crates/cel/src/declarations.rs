//! Which functions there are: the table `functions.txt`, read once.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::types::Type;

#[derive(Debug)]
pub(crate) struct Function {
    pub name: &'static str,
    pub overloads: Vec<Overload>,
}

#[derive(Debug)]
pub(crate) struct Overload {
    /// Whether it is called on its first parameter: `a.f(b)`.
    pub member: bool,
    pub params: Vec<Type>,
    pub result: Type,
}

static FUNCTIONS: LazyLock<HashMap<&'static str, Function>> = LazyLock::new(|| {
    let mut functions: HashMap<&'static str, Function> = HashMap::new();
    for line in include_str!("functions.txt").lines().filter(|line| !line.starts_with('#')) {
        // The table is part of the program: a test reads all of it.
        let (name, overload) = row(line).expect("a row of functions.txt has a name, parameters and a result");
        functions.entry(name).or_insert(Function { name, overloads: Vec::new() }).overloads.push(overload);
    }
    functions
});

/// The function of this name.
pub(crate) fn function(name: &str) -> Option<&'static Function> {
    FUNCTIONS.get(name)
}

fn row(line: &'static str) -> Option<(&'static str, Overload)> {
    let (name, rest) = line.split_once(' ')?;
    let (signature, result) = rest.split_once(" -> ")?;
    let (receiver, params) = match signature.split_once(".(") {
        Some((receiver, params)) => (Some(receiver), params),
        None => (None, signature.strip_prefix('(')?),
    };
    let mut types: Vec<Type> = receiver.map(parse).into_iter().collect::<Option<_>>()?;
    for param in split(params.strip_suffix(')')?) {
        types.push(parse(param)?);
    }
    Some((name, Overload { member: receiver.is_some(), params: types, result: parse(result)? }))
}

/// What stands between commas that are in no parentheses.
fn split(list: &str) -> Vec<&str> {
    let (mut out, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in list.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                out.push(list[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    out.extend(Some(list[start..].trim()).filter(|last| !last.is_empty()));
    out
}

fn parse(text: &str) -> Option<Type> {
    if let Some((name, inner)) = text.strip_suffix(')').and_then(|text| text.split_once('(')) {
        let mut inner = split(inner).into_iter().map(parse);
        let first = inner.next()??;
        return Some(match name {
            "list" => Type::list(first),
            "optional" => Type::optional(first),
            "type" => Type::Type(Some(first.into())),
            "map" => Type::map(first, inner.next()??),
            _ => return None,
        });
    }
    Some(match text {
        "A" => Type::Param('A'),
        "B" => Type::Param('B'),
        "duration" => Type::Duration,
        "timestamp" => Type::Timestamp,
        "dyn" => Type::Dyn,
        name => Type::primitive(name)?,
    })
}
