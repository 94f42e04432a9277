//! ImageLocality: nodes that have the pod's large images already are better.
//!
//! An image counts less the fewer nodes have it, so that pods do not pile up on the first node that pulled it.

use crate::cluster::{Cluster, Node};
use crate::framework::{Begin, Event, MAX_SCORE, Pass, Plugin};
use crate::pod::PodInfo;

const MIN_BYTES: i64 = 23 << 20;
const MAX_BYTES_PER_CONTAINER: i64 = 1000 << 20;

pub struct ImageLocality;

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }

    fn begin<'a>(&self, pod: &'a PodInfo, cluster: &'a Cluster) -> Begin<'a> {
        let spread = |image: &'a String| (image.as_str(), cluster.image_nodes(image));
        let images: Vec<_> = pod.class.images.iter().map(spread).filter(|(_, nodes)| *nodes > 0).collect();
        // On all nodes alike is as good as on none.
        if images.iter().all(|(_, nodes)| *nodes as usize == cluster.node_count()) {
            return Begin::Skip;
        }
        let max = MAX_BYTES_PER_CONTAINER * pod.class.images.len() as i64;
        Begin::run(Local { images, nodes: cluster.node_count() as f64, max })
    }

    fn may_help(&self, _event: &Event<'_>, _pod: &PodInfo, _cluster: &Cluster) -> bool {
        false
    }
}

struct Local<'a> {
    /// With the number of nodes that have it.
    images: Vec<(&'a str, u32)>,
    nodes: f64,
    max: i64,
}

impl Pass for Local<'_> {
    fn scores(&self) -> bool {
        true
    }

    fn score(&self, node: &Node) -> i64 {
        let weighted = |(image, nodes): &(&str, u32)| {
            let size = node.offer.images.get(*image).copied().unwrap_or(0);
            (size as f64 * (f64::from(*nodes) / self.nodes)) as i64
        };
        let sum: i64 = self.images.iter().map(weighted).sum();
        MAX_SCORE * (sum.clamp(MIN_BYTES, self.max) - MIN_BYTES) / (self.max - MIN_BYTES)
    }
}
