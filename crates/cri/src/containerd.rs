//! containerd supervision
