//! The checker against histories that a correct store can have made, and against such as none can.

mod judged;
mod model;
