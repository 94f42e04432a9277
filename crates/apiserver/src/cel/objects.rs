//! What the engine cannot, in other words. Objects that expressions make (`Object{spec: Object.spec{…}}`) become maps with a mark for their
//! type; the variable with a dot in its name becomes one that the engine does not take for a field.

use kube_cel::cel::common::ast::{EntryExpr, Expr, IdedExpr, LiteralValue, MapEntryExpr, MapExpr};

/// The key of such a map's type. No field can have this name.
pub const TYPE: &str = "@type";

/// The name of a variable of its own, though it looks like a field of `authorizer`.
pub const REQUEST_RESOURCE: &str = "authorizer.requestResource";

/// The names of the types of which an expression makes objects.
pub fn types(expression: &IdedExpr) -> Vec<String> {
    let mut copy = expression.clone();
    let mut found = Vec::new();
    rewrite(&mut copy, &mut found);
    found
}

/// The expression as the engine can evaluate it.
pub fn rewritten(expression: &IdedExpr) -> IdedExpr {
    let mut copy = expression.clone();
    rewrite(&mut copy, &mut Vec::new());
    copy
}

fn rewrite(expression: &mut IdedExpr, types: &mut Vec<String>) {
    match &mut expression.expr {
        Expr::Select(select)
            if select.field == "requestResource"
                && matches!(&select.operand.expr, Expr::Ident(name) if name == "authorizer") =>
        {
            expression.expr = Expr::Ident(REQUEST_RESOURCE.to_owned());
        }
        Expr::Select(select) => rewrite(&mut select.operand, types),
        Expr::Call(call) => {
            call.target.iter_mut().for_each(|target| rewrite(target, types));
            call.args.iter_mut().for_each(|argument| rewrite(argument, types));
        }
        Expr::List(list) => list.elements.iter_mut().for_each(|element| rewrite(element, types)),
        Expr::Map(map) => map.entries.iter_mut().for_each(|entry| rewrite_entry(&mut entry.expr, types)),
        Expr::Comprehension(each) => {
            for part in
                [&mut each.iter_range, &mut each.accu_init, &mut each.loop_cond, &mut each.loop_step, &mut each.result]
            {
                rewrite(part, types);
            }
        }
        Expr::Struct(_) => rewrite_object(expression, types),
        Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => {}
    }
}

fn rewrite_entry(entry: &mut EntryExpr, types: &mut Vec<String>) {
    match entry {
        EntryExpr::StructField(field) => rewrite(&mut field.value, types),
        EntryExpr::MapEntry(entry) => {
            rewrite(&mut entry.key, types);
            rewrite(&mut entry.value, types);
        }
    }
}

fn rewrite_object(expression: &mut IdedExpr, types: &mut Vec<String>) {
    let id = expression.id;
    let Expr::Struct(made) = &mut expression.expr else { return };
    types.push(made.type_name.clone());
    let text = |text: &str| IdedExpr { id, expr: Expr::Literal(LiteralValue::String(text.into())) };
    let mut entries = std::mem::take(&mut made.entries);
    for entry in &mut entries {
        rewrite_entry(&mut entry.expr, types);
        if let EntryExpr::StructField(field) = &mut entry.expr {
            let (value, optional) = (std::mem::take(&mut field.value), field.optional);
            entry.expr = EntryExpr::MapEntry(MapEntryExpr { key: text(&field.field), value, optional });
        }
    }
    let mark = MapEntryExpr { key: text(TYPE), value: text(&made.type_name), optional: false };
    entries.push(kube_cel::cel::common::ast::IdedEntryExpr { id, expr: EntryExpr::MapEntry(mark) });
    expression.expr = Expr::Map(MapExpr { entries });
}
