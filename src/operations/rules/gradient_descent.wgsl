// The rule of gradient_descent.rs.

const LEARNING_RATE: u32 = 0u;

fn gradient_descent(g: f32, state: State) -> State {
    let step = flush(g * coefficient(LEARNING_RATE));
    return State(flush(state.variable - step), 0.0, 0.0);
}
