//! `Layout`: what lies where in the control segment.
