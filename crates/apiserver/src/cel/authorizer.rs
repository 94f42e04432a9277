//! The variable `authorizer`: authorisation checks as values that expressions build step by step (upstream's `library/authz.go`).

use std::sync::Arc;

use kube_cel::cel::extractors::This;
use kube_cel::cel::objects::Opaque;
use kube_cel::cel::{Context, ExecutionError, Value as CelValue};

use crate::authz::{Authorizer, Decision};
use crate::request::{RequestInfo, UserInfo};

type Outcome = Result<CelValue, ExecutionError>;

/// The authoriser's answers for one user.
pub fn authorizer(authorizer: &Arc<Authorizer>, user: &Arc<UserInfo>) -> CelValue {
    Check { authorizer: authorizer.clone(), user: user.clone(), info: RequestInfo::default(), stage: Stage::Start }
        .into_value()
}

/// The same for what a request is about (`authorizer.requestResource`): only the verb is to be said yet. `info` has group, resource,
/// subresource, namespace and name.
pub fn request_resource(authorizer: &Arc<Authorizer>, user: &Arc<UserInfo>, mut info: RequestInfo) -> CelValue {
    info.is_resource = true;
    info.version = "*".to_owned();
    Check { authorizer: authorizer.clone(), user: user.clone(), info, stage: Stage::Resource }.into_value()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// `authorizer`
    Start,
    /// `.path(p)`
    Path,
    /// `.group(g)`
    Group,
    /// `.group(g).resource(r)`
    Resource,
}

/// A check that is being put together.
#[derive(Clone)]
struct Check {
    authorizer: Arc<Authorizer>,
    user: Arc<UserInfo>,
    info: RequestInfo,
    stage: Stage,
}

impl std::fmt::Debug for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Check").field("user", &self.user.name).field("info", &self.info).finish_non_exhaustive()
    }
}

impl PartialEq for Check {
    fn eq(&self, other: &Self) -> bool {
        self.user == other.user && self.info == other.info && self.stage == other.stage
    }
}
impl Eq for Check {}

impl Opaque for Check {
    fn runtime_type_name(&self) -> &str {
        match self.stage {
            Stage::Start => "kubernetes.authorization.Authorizer",
            Stage::Path => "kubernetes.authorization.PathCheck",
            Stage::Group => "kubernetes.authorization.GroupCheck",
            Stage::Resource => "kubernetes.authorization.ResourceCheck",
        }
    }
}

impl Check {
    fn into_value(self) -> CelValue {
        CelValue::Opaque(Arc::new(self))
    }

    /// The check that `value` is, if it is at one of `stages`; else no function of this name fits.
    fn at(value: &CelValue, stages: &[Stage]) -> Result<Self, ExecutionError> {
        match value {
            CelValue::Opaque(opaque) => opaque.downcast_ref::<Check>().filter(|check| stages.contains(&check.stage)),
            _ => None,
        }
        .cloned()
        .ok_or(ExecutionError::NoSuchOverload)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Decided {
    allowed: bool,
    reason: String,
}

impl Opaque for Decided {
    fn runtime_type_name(&self) -> &str {
        "kubernetes.authorization.Decision"
    }
}

impl Decided {
    fn of(value: &CelValue) -> Result<Self, ExecutionError> {
        match value {
            CelValue::Opaque(opaque) => opaque.downcast_ref::<Decided>().cloned(),
            _ => None,
        }
        .ok_or(ExecutionError::NoSuchOverload)
    }
}

fn service_account(This(this): This<CelValue>, namespace: Arc<String>, name: Arc<String>) -> Outcome {
    let mut check = Check::at(&this, &[Stage::Start])?;
    let user = format!("system:serviceaccount:{namespace}:{name}");
    let own = format!("system:serviceaccounts:{namespace}");
    let groups = ["system:serviceaccounts", own.as_str(), "system:authenticated"];
    check.user = Arc::new(UserInfo::new(&user, &groups));
    Ok(check.into_value())
}

fn path(This(this): This<CelValue>, path: Arc<String>) -> Outcome {
    let mut check = Check::at(&this, &[Stage::Start])?;
    (check.info.path, check.stage) = (path.to_string(), Stage::Path);
    Ok(check.into_value())
}

fn group(This(this): This<CelValue>, group: Arc<String>) -> Outcome {
    let mut check = Check::at(&this, &[Stage::Start])?;
    (check.info.group, check.info.is_resource, check.stage) = (group.to_string(), true, Stage::Group);
    // Upstream asks about every version.
    check.info.version = "*".to_owned();
    Ok(check.into_value())
}

fn resource(This(this): This<CelValue>, resource: Arc<String>) -> Outcome {
    let mut check = Check::at(&this, &[Stage::Group])?;
    (check.info.resource, check.stage) = (resource.to_string(), Stage::Resource);
    Ok(check.into_value())
}

fn subresource(This(this): This<CelValue>, subresource: Arc<String>) -> Outcome {
    let mut check = Check::at(&this, &[Stage::Resource])?;
    check.info.subresource = subresource.to_string();
    Ok(check.into_value())
}

fn namespace(This(this): This<CelValue>, namespace: Arc<String>) -> Outcome {
    let mut check = Check::at(&this, &[Stage::Resource])?;
    check.info.namespace = namespace.to_string();
    Ok(check.into_value())
}

fn name(This(this): This<CelValue>, name: Arc<String>) -> Outcome {
    let mut check = Check::at(&this, &[Stage::Resource])?;
    check.info.name = name.to_string();
    Ok(check.into_value())
}

fn check(This(this): This<CelValue>, verb: Arc<String>) -> Outcome {
    let mut check = Check::at(&this, &[Stage::Path, Stage::Resource])?;
    check.info.verb = verb.to_string();
    let (allowed, reason) = match check.authorizer.authorize(&check.user, &check.info) {
        Decision::Allow { reason } => (true, reason),
        Decision::NoOpinion { reason } | Decision::Deny { reason } => (false, reason),
    };
    Ok(CelValue::Opaque(Arc::new(Decided { allowed, reason })))
}

fn allowed(This(this): This<CelValue>) -> Outcome {
    Decided::of(&this).map(|decided| CelValue::Bool(decided.allowed))
}

fn reason(This(this): This<CelValue>) -> Outcome {
    Decided::of(&this).map(|decided| CelValue::String(Arc::new(decided.reason)))
}

/// Our authoriser answers from memory and never fails.
fn errored(This(this): This<CelValue>) -> Outcome {
    Decided::of(&this).map(|_| CelValue::Bool(false))
}

fn error(This(this): This<CelValue>) -> Outcome {
    Decided::of(&this).map(|_| CelValue::String(Arc::new(String::new())))
}

pub fn register(context: &mut Context<'_>) {
    context.add_function("serviceAccount", service_account);
    context.add_function("path", path);
    context.add_function("group", group);
    context.add_function("resource", resource);
    context.add_function("subresource", subresource);
    context.add_function("namespace", namespace);
    context.add_function("name", name);
    context.add_function("check", check);
    context.add_function("allowed", allowed);
    context.add_function("reason", reason);
    context.add_function("errored", errored);
    context.add_function("error", error);
}
