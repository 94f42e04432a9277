//! The pods of a Job. Pure.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod};

use super::facts::{FAILURES, FINALIZER, IGNORED_FAILURES, INDEX};
use super::plan::NewPod;
use crate::pod_control::pod_from;

const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";
/// Characters that the server keeps of a generated name's prefix.
const PREFIX_MAX: usize = 58;

/// What all pods of the Job have in common.
pub fn template(job: &Job, indexed: bool) -> Pod {
    let Some(spec) = &job.spec else { return Pod::default() };
    let mut pod = pod_from(job, &spec.template);
    let finalizers = pod.metadata.finalizers.get_or_insert_default();
    if finalizers.iter().all(|finalizer| finalizer != FINALIZER) {
        finalizers.push(FINALIZER.to_owned());
    }
    if indexed && let Some(spec) = &mut pod.spec {
        let containers = spec.init_containers.iter_mut().flatten().chain(&mut spec.containers);
        containers.for_each(tell_index);
    }
    pod
}

/// Tells a container its index, unless its author has given the variable another meaning.
fn tell_index(container: &mut Container) {
    let variables = container.env.get_or_insert_default();
    if variables.iter().any(|variable| variable.name == INDEX_VARIABLE) {
        return;
    }
    let field = ObjectFieldSelector { field_path: format!("metadata.labels['{INDEX}']"), api_version: None };
    let value_from = Some(EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() });
    variables.push(EnvVar { name: INDEX_VARIABLE.to_owned(), value_from, value: None });
}

/// One pod, made from the [`template`].
pub fn pod(template: &Pod, job: &Job, new: &NewPod) -> Pod {
    let mut pod = template.clone();
    let Some(index) = new.index else { return pod };
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(INDEX.to_owned(), index.to_string());
    if let Some((failures, ignored)) = new.failures {
        annotations.insert(FAILURES.to_owned(), failures.to_string());
        if ignored > 0 {
            annotations.insert(IGNORED_FAILURES.to_owned(), ignored.to_string());
        }
    }
    pod.metadata.labels.get_or_insert_default().insert(INDEX.to_owned(), index.to_string());
    let suffix = format!("-{index}-");
    let kept: String = name.chars().take(PREFIX_MAX.saturating_sub(suffix.len())).collect();
    pod.metadata.generate_name = Some(format!("{kept}{suffix}"));
    pod.spec.get_or_insert_default().hostname = Some(format!("{name}-{index}"));
    pod
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::yaml;

    #[test]
    fn a_pod_knows_its_index() {
        let job: Job = yaml(
            "{ metadata: { name: j, uid: u }, spec: { template: { metadata: { labels: { a: b } }, spec: { initContainers: [{ name: i }], containers: [{ name: c }, { name: d, env: [{ name: JOB_COMPLETION_INDEX, value: x }] }] } } } }",
        );
        let made = pod(&template(&job, true), &job, &NewPod { index: Some(12), failures: Some((2, 0)) });
        assert_eq!(made.metadata.generate_name.as_deref(), Some("j-12-"));
        assert_eq!(made.metadata.labels.expect("labelled")[INDEX], "12");
        let annotations = made.metadata.annotations.expect("annotated");
        assert_eq!((annotations[INDEX].as_str(), annotations[FAILURES].as_str()), ("12", "2"));
        assert!(!annotations.contains_key(IGNORED_FAILURES));
        assert_eq!(made.metadata.finalizers.expect("tracked"), [FINALIZER]);
        let spec = made.spec.expect("a spec");
        assert_eq!(spec.hostname.as_deref(), Some("j-12"));
        let path = |container: &Container| {
            let variable = container.env.as_ref().and_then(|env| env.first()).cloned().expect("a variable");
            variable.value_from.and_then(|from| from.field_ref).map(|field| field.field_path)
        };
        let told = Some("metadata.labels['batch.kubernetes.io/job-completion-index']".to_owned());
        assert_eq!(path(&spec.init_containers.expect("one")[0]), told);
        assert_eq!((path(&spec.containers[0]), path(&spec.containers[1])), (told, None));
    }

    #[test]
    fn a_long_name_leaves_room_for_the_index() {
        let job: Job = yaml(&format!(
            "{{ metadata: {{ name: {} }}, spec: {{ template: {{ spec: {{ containers: [] }} }} }} }}",
            "n".repeat(60)
        ));
        let made = pod(&template(&job, true), &job, &NewPod { index: Some(7), failures: None });
        assert_eq!(made.metadata.generate_name, Some(format!("{}-7-", "n".repeat(55))));
        let plain = pod(&template(&job, false), &job, &NewPod::default());
        assert_eq!(plain.metadata.generate_name, Some(format!("{}-", "n".repeat(60))));
    }
}
