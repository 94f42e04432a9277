// What a program in JavaScript does to a cluster, by the official client. Ends with an error at the first answer that is not as it should be.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import net from 'node:net';
import path from 'node:path';
import { PassThrough } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';

const entry = path.join(process.env.NODE_MODULES, '@kubernetes/client-node/dist/index.js');
const k8s = await import(pathToFileURL(entry));

const namespace = process.env.NS;
const image = 'docker.io/library/busybox:1';
const config = new k8s.KubeConfig();
config.loadFromDefault();
const core = config.makeApiClient(k8s.CoreV1Api);
const apps = config.makeApiClient(k8s.AppsV1Api);

async function refused(code, reason, call) {
  const error = await call.then(() => null, (error) => error);
  assert.ok(error, `should have been refused with ${code}`);
  assert.equal(error.code, code, String(error));
  assert.equal(JSON.parse(error.body).reason, reason);
}

async function eventually(what, seconds = 60) {
  const end = Date.now() + seconds * 1000;
  while (!(await what())) {
    assert.ok(Date.now() < end, 'it never came');
    await sleep(50);
  }
}

const configMap = (name, data = {}) => ({ metadata: { name, labels: { app: 'js' } }, data });

async function objects() {
  const made = await core.createNamespacedConfigMap({ namespace, body: configMap('a', { k: '1' }) });
  assert.ok(made.metadata.creationTimestamp instanceof Date);
  await refused(409, 'AlreadyExists', core.createNamespacedConfigMap({ namespace, body: configMap('a') }));
  await refused(404, 'NotFound', core.readNamespacedConfigMap({ namespace, name: 'none' }));
  await refused(422, 'Invalid', core.createNamespacedConfigMap({ namespace, body: configMap('Not_A_Name') }));
  made.data.k = '2';
  await core.replaceNamespacedConfigMap({ namespace, name: 'a', body: made });
  await refused(409, 'Conflict', core.replaceNamespacedConfigMap({ namespace, name: 'a', body: made }));
  const json = [{ op: 'replace', path: '/data/k', value: '3' }];
  assert.deepEqual((await core.patchNamespacedConfigMap({ namespace, name: 'a', body: json })).data, { k: '3' });
  const strategic = k8s.setHeaderOptions('Content-Type', k8s.PatchStrategy.StrategicMergePatch);
  const merged = await core.patchNamespacedConfigMap({ namespace, name: 'a', body: { data: { l: '4' } } }, strategic);
  assert.deepEqual(merged.data, { k: '3', l: '4' });
  const apply = k8s.setHeaderOptions('Content-Type', k8s.PatchStrategy.ServerSideApply);
  const body = { apiVersion: 'v1', kind: 'ConfigMap', metadata: { name: 'a' }, data: { k: '5' } };
  await refused(409, 'Conflict', core.patchNamespacedConfigMap({ namespace, name: 'a', body, fieldManager: 'js' }, apply));
  const applied = await core.patchNamespacedConfigMap({ namespace, name: 'a', body, fieldManager: 'js', force: true }, apply);
  assert.deepEqual(applied.data, { k: '5', l: '4' });
  assert.ok(applied.metadata.managedFields.some((m) => m.manager === 'js' && m.operation === 'Apply'));
  const page = await core.listNamespacedConfigMap({ namespace, labelSelector: 'app=js', limit: 1 });
  assert.deepEqual(page.items.map((item) => item.metadata.name), ['a']);
  assert.equal((await core.deleteNamespacedConfigMap({ namespace, name: 'a' })).status, 'Success');
}

async function generic() {
  const api = k8s.KubernetesObjectApi.makeApiClient(config);
  const definition = {
    apiVersion: 'apiextensions.k8s.io/v1', kind: 'CustomResourceDefinition', metadata: { name: 'cups.js.example.com' },
    spec: {
      group: 'js.example.com', scope: 'Namespaced', names: { plural: 'cups', singular: 'cup', kind: 'Cup' },
      versions: [{
        name: 'v1', served: true, storage: true,
        schema: { openAPIV3Schema: { type: 'object', properties: { spec: { type: 'object', properties: {
          size: { type: 'string', _enum: ['small', 'large'], _default: 'small' } } } } } },
      }],
    },
  };
  await api.create(definition);
  const extensions = config.makeApiClient(k8s.ApiextensionsV1Api);
  await eventually(async () => {
    const found = await extensions.readCustomResourceDefinition({ name: 'cups.js.example.com' });
    return found.status?.conditions?.some((c) => c.type === 'Established' && c.status === 'True');
  });
  const cup = { apiVersion: 'js.example.com/v1', kind: 'Cup', metadata: { name: 'c', namespace }, spec: {} };
  assert.equal((await api.create(cup)).spec.size, 'small');
  await refused(422, 'Invalid', api.create({ ...cup, metadata: { name: 'd', namespace }, spec: { size: 'huge' } }));
  const merge = k8s.PatchStrategy.MergePatch;
  const patched = await api.patch({ ...cup, spec: { size: 'large' } }, undefined, undefined, undefined, undefined, merge);
  assert.equal(patched.spec.size, 'large');
  const cups = await config.makeApiClient(k8s.CustomObjectsApi)
    .listNamespacedCustomObject({ group: 'js.example.com', version: 'v1', namespace, plural: 'cups' });
  assert.equal(cups.items.length, 1);
  await api.delete(cup);
  await api.delete(definition);
}

async function informer() {
  const list = () => core.listNamespacedConfigMap({ namespace, labelSelector: 'app=js' });
  const informer = k8s.makeInformer(config, `/api/v1/namespaces/${namespace}/configmaps`, list, 'app=js');
  const seen = [];
  for (const event of ['add', 'update', 'delete']) informer.on(event, (object) => seen.push(`${event} ${object.metadata.name}`));
  informer.on('error', (error) => seen.push(`error ${error}`));
  await core.createNamespacedConfigMap({ namespace, body: configMap('before') });
  await informer.start();
  await core.createNamespacedConfigMap({ namespace, body: configMap('w') });
  const body = [{ op: 'add', path: '/data', value: { n: '1' } }];
  await core.patchNamespacedConfigMap({ namespace, name: 'w', body });
  await core.deleteNamespacedConfigMap({ namespace, name: 'w' });
  await eventually(() => seen.includes('delete w'), 20);
  assert.deepEqual(seen, ['add before', 'add w', 'update w', 'delete w']);
  await informer.stop();
}

async function sessions() {
  const command = ['sh', '-c', 'echo started; mkdir -p /www; echo served > /www/index.html; httpd -f -p 8080 -h /www'];
  const container = { name: 'c', image, imagePullPolicy: 'IfNotPresent', command };
  await core.createNamespacedPod({ namespace, body: { metadata: { name: 'p' }, spec: { terminationGracePeriodSeconds: 1, containers: [container] } } });
  await eventually(async () => (await core.readNamespacedPod({ namespace, name: 'p' })).status.phase === 'Running');
  await eventually(async () => (await core.readNamespacedPodLog({ namespace, name: 'p' })).includes('started'));

  const collected = (stream) => { const chunks = []; stream.on('data', (chunk) => chunks.push(chunk)); return () => Buffer.concat(chunks).toString(); };
  const run = async (words, input) => {
    const [out, err] = [new PassThrough(), new PassThrough()];
    const [said, complained] = [collected(out), collected(err)];
    const stdin = input === undefined ? null : new PassThrough();
    const status = await new Promise((resolve, reject) => {
      new k8s.Exec(config).exec(namespace, 'p', 'c', words, out, err, stdin, false, resolve).then(() => stdin?.end(input), reject);
    });
    return { status, out: said(), err: complained() };
  };
  const plain = await run(['sh', '-c', 'echo hello; echo bad >&2']);
  assert.deepEqual([plain.status.status, plain.out, plain.err], ['Success', 'hello\n', 'bad\n']);
  const fed = await run(['sh', '-c', 'read line; echo got $line; exit 3'], 'words\n');
  assert.equal(fed.out, 'got words\n');
  assert.equal(fed.status.status, 'Failure');
  assert.deepEqual(fed.status.details.causes, [{ reason: 'ExitCode', message: '3' }]);

  const log = new PassThrough();
  const logged = collected(log);
  await new k8s.Log(config).log(namespace, 'p', 'c', log, { follow: false, tailLines: 1 });
  await eventually(() => logged() === 'started\n');

  const forward = new k8s.PortForward(config);
  const server = net.createServer((socket) => forward.portForward(namespace, 'p', [8080], socket, null, socket));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  await eventually(async () => {
    const answer = await fetch(`http://127.0.0.1:${server.address().port}/`, { headers: { connection: 'close' } }).catch(() => null);
    return answer !== null && (await answer.text()) === 'served\n';
  });
  server.close();
  server.closeAllConnections?.();
  await core.deleteNamespacedPod({ namespace, name: 'p', gracePeriodSeconds: 0 });
}

async function workloads() {
  const labels = { app: 'web' };
  const containers = [{ name: 'web', image: 'docker.io/coxswain/web:1', imagePullPolicy: 'IfNotPresent' }];
  const spec = { replicas: 1, selector: { matchLabels: labels }, template: { metadata: { labels }, spec: { containers } } };
  await apps.createNamespacedDeployment({ namespace, body: { metadata: { name: 'web' }, spec } });
  const ready = async () => (await apps.readNamespacedDeployment({ namespace, name: 'web' })).status.readyReplicas;
  await eventually(async () => (await ready()) === 1);
  const scale = await apps.readNamespacedDeploymentScale({ namespace, name: 'web' });
  scale.spec.replicas = 2;
  await apps.replaceNamespacedDeploymentScale({ namespace, name: 'web', body: scale });
  await eventually(async () => (await ready()) === 2);
  await apps.deleteNamespacedDeployment({ namespace, name: 'web', propagationPolicy: 'Foreground' });
  await eventually(async () => (await core.listNamespacedPod({ namespace, labelSelector: 'app=web' })).items.length === 0);
}

for (const scenario of [objects, generic, informer, sessions, workloads]) {
  const started = Date.now();
  await scenario();
  console.log(`ok ${scenario.name} ${(Date.now() - started) / 1000}s`);
}
// The client keeps connections alive.
process.exit(0);
