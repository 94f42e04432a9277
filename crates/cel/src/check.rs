//! The type checker: cel-go's rules and words.

use std::sync::Arc;

use crate::ast::{Expr, ExprKind, Fold, Literal, op};
use crate::declarations::{Function, Overload, function};
use crate::env::Env;
use crate::source::Issue;
use crate::types::{Fields, Type};

/// How many parts a type may have; types of maps could double with every step of a chain of macros.
const MAX_PARTS: usize = 1_000;

/// The type of `expr`, whose numbers are below `ids`; qualified names are written into it.
pub(crate) fn check(env: &Env, expr: &mut Expr, ids: u32) -> Result<Type, Vec<Issue>> {
    let types = vec![Type::Error; ids as usize];
    let mut checker =
        Checker { env, types, issues: Vec::new(), locals: Vec::new(), vars: Vec::new(), trail: Vec::new() };
    let ty = checker.visit(expr);
    if checker.issues.is_empty() { Ok(checker.substitute(&ty, true)) } else { Err(checker.issues) }
}

struct Checker<'e> {
    env: &'e Env,
    /// Of each expression that has been visited, by its number.
    types: Vec<Type>,
    issues: Vec<Issue>,
    /// Variables of comprehensions, inner ones last.
    locals: Vec<(Box<str>, Type)>,
    /// What type variables stand for.
    vars: Vec<Option<Type>>,
    /// Former values of `vars`, to undo an attempt.
    trail: Vec<(u32, Option<Type>)>,
}

impl Checker<'_> {
    fn fault(&mut self, at: u32, message: String) {
        self.issues.push(Issue::new(at, message));
    }

    fn set(&mut self, expr: &Expr, ty: Type) -> Type {
        let mut parts = 0;
        let ty = if self.is_small(&ty, &mut parts) {
            ty
        } else {
            self.fault(expr.at, format!("type has more than {MAX_PARTS} parts"));
            Type::Error
        };
        self.types[expr.id as usize] = ty.clone();
        ty
    }

    fn visit(&mut self, expr: &mut Expr) -> Type {
        let ty = match &mut expr.kind {
            ExprKind::Literal(literal) => literal_type(literal),
            ExprKind::Ident(_) => self.ident(expr),
            ExprKind::Select(_) => self.select(expr),
            ExprKind::Call(_) => self.call(expr),
            ExprKind::List(items) => {
                let mut joined = None;
                for item in items {
                    let found = self.visit(&mut item.value);
                    let found = if item.optional { self.unwrap(item.value.at, found) } else { found };
                    joined = Some(self.join(item.value.at, joined, found));
                }
                Type::list(joined.unwrap_or_else(|| self.fresh()))
            }
            ExprKind::Map(entries) => {
                let (mut keys, mut values) = (None, None);
                for entry in entries {
                    let key = self.visit(&mut entry.key);
                    keys = Some(self.join(entry.key.at, keys, key));
                    let value = self.visit(&mut entry.value);
                    let value = if entry.optional { self.unwrap(entry.value.at, value) } else { value };
                    values = Some(self.join(entry.value.at, values, value));
                }
                let key = keys.unwrap_or_else(|| self.fresh());
                Type::map(key, values.unwrap_or_else(|| self.fresh()))
            }
            ExprKind::Struct(_) => self.object(expr),
            ExprKind::Fold(fold) => self.fold(fold),
        };
        self.set(expr, ty)
    }

    /// What is in an optional that stands after a `?`.
    fn unwrap(&mut self, at: u32, ty: Type) -> Type {
        match ty {
            Type::Optional(inner) => (*inner).clone(),
            Type::Dyn | Type::Error => ty,
            other => {
                let message = format!("expected type '{}' but found '{other}'", Type::optional(other.clone()));
                self.fault(at, message);
                other
            }
        }
    }

    fn ident(&mut self, expr: &mut Expr) -> Type {
        let ExprKind::Ident(name) = &expr.kind else { return Type::Error };
        let name = name.clone();
        if !name.starts_with('.')
            && let Some((_, ty)) = self.locals.iter().rev().find(|(local, _)| *local == name)
        {
            return ty.clone();
        }
        match self.global(expr, name.trim_start_matches('.')) {
            Some(ty) => ty,
            None => {
                self.fault(expr.at, format!("undeclared reference to '{name}' (in container '')"));
                Type::Error
            }
        }
    }

    /// The variable or type of the environment that `name` is; `expr` becomes its name.
    fn global(&mut self, expr: &mut Expr, name: &str) -> Option<Type> {
        let ty = match self.env.variable_named(name) {
            Some(ty) => ty.clone(),
            None => Type::Type(Some(Arc::new(self.env.type_named(name)?))),
        };
        expr.kind = ExprKind::Ident(name.into());
        Some(ty)
    }

    fn select(&mut self, expr: &mut Expr) -> Type {
        // A name with dots may be a type's.
        if let Some(name) = qualified(expr)
            && !self.locals.iter().any(|(local, _)| name.split('.').next() == Some(local))
            && self.env.variable_named(name.split('.').next().unwrap_or_default()).is_none()
            && let Some(ty) = self.global(expr, name.trim_start_matches('.'))
        {
            return ty;
        }
        let at = expr.at;
        let ExprKind::Select(select) = &mut expr.kind else { return Type::Error };
        let ty = self.field(&mut select.operand, at, &select.field, false);
        if select.test { Type::Bool } else { ty }
    }

    /// The type of a field of `operand`.
    fn field(&mut self, operand: &mut Expr, at: u32, field: &str, optional: bool) -> Type {
        let found = self.visit(operand);
        let found = self.substitute(&found, false);
        let (target, wrapped) = match found {
            Type::Optional(inner) => ((*inner).clone(), true),
            other => (other, false),
        };
        let ty = match &target {
            Type::Map(pair) => pair.1.clone(),
            Type::Object(object) => match &object.fields {
                Fields::Any => Type::Dyn,
                Fields::Declared(fields) => match fields.get(field) {
                    Some(ty) => ty.clone(),
                    None => {
                        self.fault(at, format!("undefined field '{field}'"));
                        Type::Error
                    }
                },
            },
            Type::Var(_) => {
                self.assignable(&Type::Dyn, &target);
                Type::Dyn
            }
            Type::Dyn | Type::Error => Type::Dyn,
            other => {
                self.fault(at, format!("type '{other}' does not support field selection"));
                Type::Dyn
            }
        };
        let ty = self.substitute(&ty, false);
        if wrapped || optional { Type::optional(ty) } else { ty }
    }

    fn call(&mut self, expr: &mut Expr) -> Type {
        let at = expr.at;
        let ExprKind::Call(call) = &mut expr.kind else { return Type::Error };
        if &*call.function == op::OPT_SELECT
            && let [operand, field] = call.args.as_mut_slice()
            && let ExprKind::Literal(Literal::String(name)) = &field.kind
        {
            let name = name.clone();
            self.visit(field);
            return self.field(operand, at, &name, true);
        }
        for arg in &mut call.args {
            self.visit(arg);
        }
        let args: Vec<Type> = call.args.iter().map(|arg| self.types[arg.id as usize].clone()).collect();
        let Some(target) = &mut call.target else {
            let name = call.function.trim_start_matches('.');
            return match function(name) {
                Some(function) => self.overload(at, function, args, false),
                None => self.unknown_function(at, &call.function.clone()),
            };
        };
        // The target may be a function's namespace instead of a value.
        if let Some(prefix) = qualified(target)
            && let Some(function) = function(format!("{}.{}", prefix.trim_start_matches('.'), call.function).as_str())
        {
            call.target = None;
            call.function = function.name.into();
            return self.overload(at, function, args, false);
        }
        self.visit(target);
        let mut all = vec![self.types[target.id as usize].clone()];
        all.extend(args);
        match function(&call.function) {
            Some(function) => self.overload(at, function, all, true),
            None => self.unknown_function(at, &call.function.clone()),
        }
    }

    fn unknown_function(&mut self, at: u32, name: &str) -> Type {
        self.fault(at, format!("undeclared reference to '{name}' (in container '')"));
        Type::Error
    }

    fn overload(&mut self, at: u32, function: &'static Function, args: Vec<Type>, member: bool) -> Type {
        if matches!(function.name, op::AND | op::OR) {
            return self.logic(at, &args);
        }
        let mut result: Option<Type> = None;
        for overload in function.overloads.iter().filter(|overload| overload.member == member) {
            let (params, out) = self.instantiate(overload);
            if params.len() != args.len() || !self.all_assignable(&args, &params) {
                continue;
            }
            let out = self.substitute(&out, false);
            result = Some(match result {
                None => out,
                Some(before) if before.is_dyn() || before == out => before,
                Some(_) => Type::Dyn,
            });
        }
        let Some(result) = result else {
            let shown: Vec<String> = args.iter().map(|arg| self.substitute(arg, true).to_string()).collect();
            let signature = match shown.split_first() {
                Some((target, rest)) if member => format!("{target}.({})", rest.join(", ")),
                _ => format!("({})", shown.join(", ")),
            };
            self.fault(at, format!("found no matching overload for '{}' applied to '{signature}'", function.name));
            return Type::Error;
        };
        result
    }

    fn logic(&mut self, at: u32, args: &[Type]) -> Type {
        let mut good = true;
        for arg in args {
            if !self.assignable(arg, &Type::Bool) {
                let arg = self.substitute(arg, true);
                self.fault(at, format!("expected type 'bool' but found '{arg}'"));
                good = false;
            }
        }
        if good { Type::Bool } else { Type::Error }
    }

    fn object(&mut self, expr: &mut Expr) -> Type {
        let at = expr.at;
        let ExprKind::Struct(made) = &mut expr.kind else { return Type::Error };
        let ty = self.env.struct_named(made.name.trim_start_matches('.'));
        if ty.is_none() {
            self.fault(at, format!("undeclared reference to '{}' (in container '')", made.name));
        }
        for field in &mut made.fields {
            let found = self.visit(&mut field.value);
            let found = if field.optional { self.unwrap(field.value.at, found) } else { found };
            let Some(object) = &ty else { continue };
            let declared = match &object.fields {
                Fields::Any => Type::Dyn,
                Fields::Declared(fields) => match fields.get(&field.name) {
                    Some(ty) => ty.clone(),
                    None => {
                        self.fault(field.at, format!("undefined field '{}'", field.name));
                        continue;
                    }
                },
            };
            if !self.assignable(&declared, &found) {
                let message =
                    format!("expected type of field '{}' is '{declared}' but provided type is '{found}'", field.name);
                self.fault(field.at, message);
            }
        }
        let Some(object) = ty else { return Type::Error };
        Type::Object(object)
    }

    fn fold(&mut self, fold: &mut Fold) -> Type {
        let range = self.visit(&mut fold.range);
        let accu = self.visit(&mut fold.init);
        let range = self.substitute(&range, false);
        let (first, second) = match &range {
            Type::List(item) if fold.var2.is_some() => (Type::Int, (**item).clone()),
            Type::List(item) => ((**item).clone(), Type::Dyn),
            Type::Map(pair) => (pair.0.clone(), pair.1.clone()),
            Type::Dyn | Type::Error => (Type::Dyn, Type::Dyn),
            Type::Var(_) => {
                self.assignable(&Type::Dyn, &range);
                (Type::Dyn, Type::Dyn)
            }
            other => {
                let message = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.fault(fold.range.at, message);
                (Type::Error, Type::Error)
            }
        };
        let outer = self.locals.len();
        self.locals.push((fold.accu.clone(), accu.clone()));
        self.locals.push((fold.var.clone(), first));
        if let Some(var2) = &fold.var2 {
            self.locals.push((var2.clone(), second));
        }
        let condition = self.visit(&mut fold.condition);
        self.expect(fold.condition.at, &Type::Bool, &condition);
        let step = self.visit(&mut fold.step);
        self.expect(fold.step.at, &accu, &step);
        self.locals.truncate(outer + 1);
        let result = self.visit(&mut fold.result);
        self.locals.truncate(outer);
        self.substitute(&result, false)
    }

    fn expect(&mut self, at: u32, wanted: &Type, found: &Type) {
        if !self.assignable(wanted, found) {
            self.fault(at, format!("expected type '{wanted}' but found '{found}'"));
        }
    }

    fn join(&mut self, at: u32, before: Option<Type>, next: Type) -> Type {
        let Some(before) = before else { return next };
        if self.assignable(&before, &next) {
            return more_general(&before, &next);
        }
        let (shown, found) = (self.substitute(&before, false), self.substitute(&next, false));
        self.fault(at, format!("expected type '{shown}' but found '{found}'"));
        Type::Error
    }
}

/// Types that stand for others.
impl Checker<'_> {
    fn fresh(&mut self) -> Type {
        self.vars.push(None);
        Type::Var(u32::try_from(self.vars.len() - 1).unwrap_or(u32::MAX))
    }

    /// An overload's parameters and result with type variables of its own.
    fn instantiate(&mut self, overload: &Overload) -> (Vec<Type>, Type) {
        let mut known: Vec<(char, Type)> = Vec::new();
        let mut fresh = |checker: &mut Self, name: char| match known.iter().find(|(known, _)| *known == name) {
            Some((_, ty)) => ty.clone(),
            None => {
                let ty = checker.fresh();
                known.push((name, ty.clone()));
                ty
            }
        };
        let params = overload.params.iter().map(|param| self.replace(param, &mut fresh)).collect();
        let result = self.replace(&overload.result, &mut fresh);
        (params, result)
    }

    fn replace(&mut self, ty: &Type, fresh: &mut dyn FnMut(&mut Self, char) -> Type) -> Type {
        match ty {
            Type::Param(name) => fresh(self, *name),
            Type::List(item) => Type::list(self.replace(item, fresh)),
            Type::Map(pair) => {
                let key = self.replace(&pair.0, fresh);
                Type::map(key, self.replace(&pair.1, fresh))
            }
            Type::Optional(value) => Type::optional(self.replace(value, fresh)),
            Type::Type(Some(of)) => Type::Type(Some(Arc::new(self.replace(of, fresh)))),
            other => other.clone(),
        }
    }

    fn known(&self, var: u32) -> Option<&Type> {
        self.vars.get(var as usize).and_then(Option::as_ref)
    }

    fn bind(&mut self, var: u32, ty: Type) {
        let slot = &mut self.vars[var as usize];
        self.trail.push((var, slot.replace(ty)));
    }

    /// `ty` with what its variables stand for; `finally`, those that stand for nothing are `dyn`.
    fn substitute(&self, ty: &Type, finally: bool) -> Type {
        match ty {
            Type::Var(var) => match self.known(*var) {
                Some(known) => self.substitute(known, finally),
                None if finally => Type::Dyn,
                None => ty.clone(),
            },
            Type::List(item) => Type::list(self.substitute(item, finally)),
            Type::Map(pair) => Type::map(self.substitute(&pair.0, finally), self.substitute(&pair.1, finally)),
            Type::Optional(value) => Type::optional(self.substitute(value, finally)),
            Type::Type(Some(of)) => Type::Type(Some(Arc::new(self.substitute(of, finally)))),
            other => other.clone(),
        }
    }

    fn assignable(&mut self, a: &Type, b: &Type) -> bool {
        let mark = self.trail.len();
        let good = self.unify(a, b);
        self.settle(mark, good);
        good
    }

    fn all_assignable(&mut self, a: &[Type], b: &[Type]) -> bool {
        let mark = self.trail.len();
        let good = a.iter().zip(b).all(|(a, b)| self.unify(a, b));
        self.settle(mark, good);
        good
    }

    /// Takes back what a failed attempt has bound.
    fn settle(&mut self, mark: usize, good: bool) {
        while !good && self.trail.len() > mark {
            if let Some((var, before)) = self.trail.pop() {
                self.vars[var as usize] = before;
            }
        }
        if good && mark == 0 {
            self.trail.clear();
        }
    }

    fn unify(&mut self, a: &Type, b: &Type) -> bool {
        if let Type::Var(var) = b {
            let (valid, bound) = self.stands_for(a, *var);
            if valid || bound {
                return valid;
            }
        }
        if let Type::Var(var) = a {
            return self.stands_for(b, *var).0;
        }
        match (a, b) {
            (Type::Dyn | Type::Error, _) | (_, Type::Dyn | Type::Error) => true,
            (Type::Null, other) | (other, Type::Null) => matches!(
                other,
                Type::Null | Type::Optional(_) | Type::Opaque(_) | Type::Object(_) | Type::Duration | Type::Timestamp
            ),
            (Type::Type(_), Type::Type(_)) => true,
            (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => self.unify(a, b),
            (Type::Map(a), Type::Map(b)) => self.unify(&a.0, &b.0) && self.unify(&a.1, &b.1),
            (a, b) => a == b,
        }
    }

    /// Whether variable `var` can stand for `ty`, and whether it stood for something before.
    fn stands_for(&mut self, ty: &Type, var: u32) -> (bool, bool) {
        if *ty == Type::Var(var) {
            return (true, true);
        }
        if let Some(known) = self.known(var).cloned() {
            if *ty == known {
                return (true, true);
            }
            if !self.unify(ty, &known) {
                return (false, true);
            }
            let general = more_general(ty, &known);
            if !self.occurs(var, &general) {
                self.bind(var, general);
            }
            return (true, true);
        }
        if self.occurs(var, ty) {
            return (false, false);
        }
        self.bind(var, ty.clone());
        (true, false)
    }

    /// Whether `ty`, with what its variables stand for, has few enough parts.
    fn is_small(&self, ty: &Type, parts: &mut usize) -> bool {
        *parts += 1;
        *parts <= MAX_PARTS
            && match ty {
                Type::Var(var) => self.known(*var).is_none_or(|known| self.is_small(known, parts)),
                Type::List(inner) | Type::Optional(inner) | Type::Type(Some(inner)) => self.is_small(inner, parts),
                Type::Map(pair) => self.is_small(&pair.0, parts) && self.is_small(&pair.1, parts),
                _ => true,
            }
    }

    fn occurs(&self, var: u32, within: &Type) -> bool {
        match within {
            Type::Var(other) => *other == var || self.known(*other).is_some_and(|known| self.occurs(var, known)),
            Type::List(item) => self.occurs(var, item),
            Type::Optional(value) => self.occurs(var, value),
            Type::Map(pair) => self.occurs(var, &pair.0) || self.occurs(var, &pair.1),
            Type::Type(Some(of)) => self.occurs(var, of),
            _ => false,
        }
    }
}

fn literal_type(literal: &Literal) -> Type {
    match literal {
        Literal::Null => Type::Null,
        Literal::Bool(_) => Type::Bool,
        Literal::Int(_) => Type::Int,
        Literal::Uint(_) => Type::Uint,
        Literal::Double(_) => Type::Double,
        Literal::String(_) => Type::String,
        Literal::Bytes(_) => Type::Bytes,
    }
}

fn more_general(a: &Type, b: &Type) -> Type {
    if less_specific(a, b) { a.clone() } else { b.clone() }
}

fn less_specific(a: &Type, b: &Type) -> bool {
    match (a, b) {
        (Type::Dyn | Type::Var(_), _) => true,
        (_, Type::Dyn | Type::Var(_)) => false,
        (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => less_specific(a, b),
        (Type::Map(a), Type::Map(b)) => less_specific(&a.0, &b.0) && less_specific(&a.1, &b.1),
        (Type::Type(_), Type::Type(_)) => true,
        (a, b) => a == b,
    }
}

/// `a.b.c` as a name, if it is nothing but names.
fn qualified(expr: &Expr) -> Option<String> {
    match &expr.kind {
        ExprKind::Ident(name) => Some(name.to_string()),
        ExprKind::Select(select) if !select.test => Some(format!("{}.{}", qualified(&select.operand)?, select.field)),
        _ => None,
    }
}
