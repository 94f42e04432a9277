//! Admission of one attempt: the built-in plugins, then policies, then webhooks.

use apimachinery::status::{Result, StatusError};
use apimachinery::{Value, meta};
use serde_json::{Map, json};

use super::prepare::Moment;
use super::{DeleteOptions, managed, scale};
use crate::admission::webhooks::{self, Attempt, Phase, Rounds};
use crate::admission::{Chain, Operation, Request, policies};
use crate::server::{ApiServer, Call};
use crate::strategy::Claim;

/// What admission is told of an attempt besides the objects (upstream's `admission.Attributes`).
#[derive(Clone, Copy)]
pub struct Attributes<'a> {
    pub operation: Operation,
    /// Empty for the object itself.
    pub subresource: &'a str,
    pub dry_run: bool,
    pub moment: Moment,
    /// The options of a deletion.
    pub deletion: Option<&'a DeleteOptions>,
}

impl<'a> Attributes<'a> {
    pub fn new(operation: Operation, subresource: &'a str, dry_run: bool, moment: Moment) -> Self {
        Attributes { operation, subresource, dry_run, moment, deletion: None }
    }
}

impl Attributes<'_> {
    /// Lets plugins, policies and webhooks change the object.
    pub async fn admit(
        self,
        server: &ApiServer,
        call: &mut Call,
        object: &mut Value,
        old: Option<&Value>,
    ) -> Result<()> {
        self.ask(server, call, object, old, Chain::admit)?;
        let hooks = self.hooks(server, call, object, Phase::Mutating)?;
        if hooks.is_empty() { Ok(()) } else { Box::pin(self.mutate(hooks, server, call, object, old)).await }
    }

    /// Lets plugins, policies and webhooks refuse the object as it will be stored.
    pub async fn validate(
        self,
        server: &ApiServer,
        call: &mut Call,
        object: &mut Value,
        old: Option<&Value>,
    ) -> Result<()> {
        self.ask(server, call, object, old, Chain::validate)?;
        let hooks = self.hooks(server, call, object, Phase::Validating)?;
        if hooks.is_empty() {
            return Ok(());
        }
        let shown = Shown::of(&self, call, object, old);
        let attempt = self.attempt(server, call, meta::name(object));
        let (object, old) = (shown.object(object), shown.old(old));
        if let Some(hooks) = &hooks.policies {
            Box::pin(policies::validate(hooks, &attempt, object, old)).await?;
        }
        match &hooks.webhooks {
            Some(hooks) => Box::pin(webhooks::validate(hooks, &attempt, object, old)).await,
            None => Ok(()),
        }
    }

    /// Both, where nothing happens in between.
    pub async fn decide(
        self,
        server: &ApiServer,
        call: &mut Call,
        object: &mut Value,
        old: Option<&Value>,
    ) -> Result<()> {
        self.admit(server, call, object, old).await?;
        self.validate(server, call, object, old).await
    }

    fn ask(
        self,
        server: &ApiServer,
        call: &mut Call,
        object: &mut Value,
        old: Option<&Value>,
        question: fn(&Chain, &mut Request<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut warnings = Vec::new();
        let outcome =
            self.request(server, call, object, old, &mut warnings, |request| question(&server.admission, request));
        call.warnings.extend(warnings);
        outcome
    }

    /// What the plugins claim for the object as it will be stored.
    pub fn claims(
        self,
        server: &ApiServer,
        call: &Call,
        object: &mut Value,
        old: Option<&Value>,
    ) -> Result<Vec<Claim>> {
        self.request(server, call, object, old, &mut Vec::new(), |request| server.admission.claims(request))
    }

    fn request<T>(
        self,
        server: &ApiServer,
        call: &Call,
        object: &mut Value,
        old: Option<&Value>,
        warnings: &mut Vec<String>,
        work: impl FnOnce(&mut Request<'_>) -> T,
    ) -> T {
        work(&mut Request {
            operation: self.operation,
            user: &call.user,
            row: &call.row,
            subresource: self.subresource,
            namespace: &call.info.namespace,
            name: &call.info.name,
            object,
            old,
            dry_run: self.dry_run,
            now: self.moment.now,
            seed: self.moment.seed,
            view: &server.view,
            warnings,
            audit: call.audit.as_deref(),
        })
    }

    /// The policies and webhooks to ask, if there are any and the attempt is any of their business.
    fn hooks(&self, server: &ApiServer, call: &Call, object: &Value, phase: Phase) -> Result<Hooks> {
        // What a POST to a subresource does to the object has been admitted as that POST.
        let follows_post = call.info.verb == "create" && self.operation != Operation::Connect;
        let follows_post = follows_post && !call.info.subresource.is_empty() && self.operation != Operation::Create;
        if follows_post {
            return Ok(Hooks::default());
        }
        let unreadable = |error| unreadable(call, object, &error);
        let policies = if policies::exempt(&call.row) {
            None
        } else {
            server.policies.of(phase, &call.row).map_err(unreadable)?
        };
        let webhooks =
            if webhooks::exempt(&call.row) { None } else { server.webhooks.of(phase).map_err(unreadable)? };
        Ok(Hooks { policies, webhooks })
    }

    async fn mutate(
        self,
        hooks: Hooks,
        server: &ApiServer,
        call: &mut Call,
        object: &mut Value,
        old: Option<&Value>,
    ) -> Result<()> {
        let mut rounds = [Rounds::default(), Rounds::default()];
        let owners = meta::at(object, &["metadata", "managedFields"]).cloned();
        if !self.round(&hooks, server, call, object, old, &mut rounds).await? {
            return Ok(());
        }
        // Plugins look at what policies and webhooks made, and those of them that want to at what came after them.
        self.ask(server, call, object, old, Chain::admit)?;
        self.round(&hooks, server, call, object, old, &mut rounds).await?;
        call.warnings.extend(managed::restored(object, owners));
        Ok(())
    }

    async fn round(
        &self,
        hooks: &Hooks,
        server: &ApiServer,
        call: &mut Call,
        object: &mut Value,
        old: Option<&Value>,
        rounds: &mut [Rounds; 2],
    ) -> Result<bool> {
        let mut shown = Shown::of(self, call, object, old);
        let kept = (self.operation == Operation::Create && self.subresource.is_empty()).then(|| hide(object));
        let name =
            kept.as_ref().and_then(|kept| kept.get("name")).map_or_else(|| meta::name(object), |_| "").to_owned();
        let outcome: Result<bool> = {
            let attempt = self.attempt(server, call, &name);
            let (shown, old) = shown.both(object, old);
            hooks.mutate(&attempt, shown, old, rounds).await
        };
        if let Some(kept) = kept {
            meta::metadata_mut(object).extend(kept);
        }
        let changed = outcome?;
        if changed {
            shown.write_back(call, object)?;
            if self.operation == Operation::Update
                && let Some(old) = old
            {
                super::meta::prepare_update(call, object, old)?;
            }
            super::meta::drop_repeated_owners(call, object);
        }
        Ok(changed)
    }

    fn attempt<'c>(&'c self, server: &'c ApiServer, call: &'c Call, name: &str) -> Attempt<'c> {
        let name = match self.operation {
            Operation::Create if self.subresource.is_empty() => name,
            _ => &call.info.name,
        };
        Attempt {
            server,
            call,
            operation: self.operation,
            subresource: self.subresource,
            name: name.to_owned(),
            dry_run: self.dry_run,
            options: self.options(call),
        }
    }

    /// The options as the client sent them.
    fn options(&self, call: &Call) -> Value {
        let kind = match self.operation {
            Operation::Create => "CreateOptions",
            Operation::Update => "UpdateOptions",
            Operation::Delete => "DeleteOptions",
            Operation::Connect => return Value::Null,
        };
        let mut options = match self.deletion {
            Some(deletion) => json!(deletion),
            None => json!({}),
        };
        options["kind"] = json!(kind);
        options["apiVersion"] = json!("meta.k8s.io/v1");
        if self.deletion.is_none() {
            for key in ["fieldManager", "fieldValidation"] {
                if let Some(text) = call.query.get(key).filter(|text| !text.is_empty()) {
                    options[key] = json!(text);
                }
            }
        }
        if self.dry_run {
            options["dryRun"] = json!(["All"]);
        }
        options
    }
}

/// Who has a say in a write, besides the built-in plugins.
#[derive(Default)]
struct Hooks {
    policies: Option<policies::Hooks>,
    webhooks: Option<webhooks::Hooks>,
}

impl Hooks {
    fn is_empty(&self) -> bool {
        self.policies.is_none() && self.webhooks.is_none()
    }

    /// `rounds` are those of policies and of webhooks.
    async fn mutate(
        &self,
        attempt: &Attempt<'_>,
        object: &mut Value,
        old: Option<&Value>,
        [of_policies, of_webhooks]: &mut [Rounds; 2],
    ) -> Result<bool> {
        let mut changed = false;
        if let Some(hooks) = &self.policies {
            changed |= policies::mutate(hooks, attempt, object, old, of_policies).await?;
        }
        if let Some(hooks) = &self.webhooks {
            changed |= webhooks::mutate(hooks, attempt, object, old, of_webhooks).await?;
        }
        Ok(changed)
    }
}

/// Where nobody knows who has a say in a write, it is refused.
fn unreadable(call: &Call, object: &Value, error: &store::Error) -> StatusError {
    tracing::error!(%error, "cannot read what admission is configured with");
    let name = if call.info.name.is_empty() { meta::name(object) } else { &call.info.name };
    StatusError::forbidden(&call.row.group_resource(), name, "not yet ready to handle request")
}

/// Takes out of a new object what upstream sets only after mutating admission. To be put back.
fn hide(object: &mut Value) -> Map<String, Value> {
    let generated = !meta::str_at(object, &["metadata", "generateName"]).is_empty();
    let metadata = meta::metadata_mut(object);
    let keys = ["uid", "creationTimestamp", "name"].into_iter().filter(|key| *key != "name" || generated);
    keys.filter_map(|key| Some((key.to_owned(), metadata.remove(key)?))).collect()
}

/// The object as webhooks see it: of `scale` a Scale, of everything else the object itself.
enum Shown {
    Itself,
    Scale(Value, Option<Value>),
}

impl Shown {
    fn of(attributes: &Attributes<'_>, call: &Call, object: &Value, old: Option<&Value>) -> Self {
        if attributes.subresource != "scale" {
            return Shown::Itself;
        }
        Shown::Scale(scale::view(&call.row, object), old.map(|old| scale::view(&call.row, old)))
    }

    fn object<'o>(&'o self, object: &'o Value) -> &'o Value {
        match self {
            Shown::Itself => object,
            Shown::Scale(scale, _) => scale,
        }
    }

    fn both<'o>(&'o mut self, object: &'o mut Value, old: Option<&'o Value>) -> (&'o mut Value, Option<&'o Value>) {
        match self {
            Shown::Itself => (object, old),
            Shown::Scale(scale, old) => (scale, old.as_ref()),
        }
    }

    fn old<'o>(&'o self, old: Option<&'o Value>) -> Option<&'o Value> {
        match self {
            Shown::Itself => old,
            Shown::Scale(_, old) => old.as_ref(),
        }
    }

    fn write_back(self, call: &Call, object: &mut Value) -> Result<()> {
        match self {
            Shown::Itself => Ok(()),
            Shown::Scale(mut wanted, _) => {
                meta::remove(&mut wanted, "resourceVersion");
                let version = meta::remove(object, "resourceVersion");
                scale::set(&call.row, object, &wanted)?;
                if let Some(version) = version {
                    meta::metadata_mut(object).insert("resourceVersion".to_owned(), version);
                }
                Ok(())
            }
        }
    }
}
