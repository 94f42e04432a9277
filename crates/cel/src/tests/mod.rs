mod syntax;
mod typing;
