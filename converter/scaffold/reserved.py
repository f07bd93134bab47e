"""Names that torch and Keras have for themselves, so that no layer of a network can have them."""

# Of torch.nn.Module.
TORCH_MODULE = frozenset(
    """
    T_destination _apply _backward_hooks _backward_pre_hooks _buffers _call_impl _compiled_call_impl
    _forward_hooks _forward_hooks_always_called _forward_hooks_with_kwargs _forward_pre_hooks
    _forward_pre_hooks_with_kwargs _get_backward_hooks _get_backward_pre_hooks _get_name _is_full_backward_hook
    _load_from_state_dict _load_state_dict_post_hooks _load_state_dict_pre_hooks
    _maybe_warn_non_full_backward_hook _modules _named_members _non_persistent_buffers_set _parameters
    _register_load_state_dict_pre_hook _register_state_dict_hook _replicate_for_data_parallel
    _save_to_state_dict _slow_forward _state_dict_hooks _state_dict_pre_hooks _version _wrapped_call_impl
    add_module apply bfloat16 buffers call_super_init children compile cpu cuda double dump_patches eval
    extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu load_state_dict
    modules mtia named_buffers named_children named_modules named_parameters parameters register_backward_hook
    register_buffer register_forward_hook register_forward_pre_hook register_full_backward_hook
    register_full_backward_pre_hook register_load_state_dict_post_hook register_load_state_dict_pre_hook
    register_module register_parameter register_state_dict_post_hook register_state_dict_pre_hook requires_grad_
    set_extra_state set_submodule share_memory state_dict to to_empty train training type xpu zero_grad
    """.split()
)
# What torch.nn.ModuleDict has beyond that.
TORCH_DICT = frozenset(
    """
    clear items keys pop update values
    """.split()
)
# Of keras.layers.Layer.
KERAS_LAYER = frozenset(
    """
    activity_regularizer add_loss add_metric add_variable add_weight autocast build build_from_config built call
    call_signature_parameters compute_dtype compute_mask compute_output_shape compute_output_spec count_params
    dtype dtype_policy from_config get_build_config get_config get_weights input input_dtype input_spec
    load_own_variables losses metrics metrics_variables name non_trainable_variables non_trainable_weights
    output path quantization_mode quantize quantized_build quantized_call rematerialized_call save_own_variables
    set_weights stateless_call supports_jit supports_masking symbolic_call trainable trainable_variables
    trainable_weights variable_dtype variables weights
    """.split()
)
# What keras.Model has beyond that.
KERAS_MODEL = frozenset(
    """
    compile compile_from_config compiled compiled_loss compiled_metrics compute_loss compute_metrics
    distribute_reduction_method distribute_strategy evaluate export fit get_compile_config get_layer
    get_metrics_result get_quantization_layer_structure get_state_tree jit_compile layers load_weights loss
    make_predict_function make_test_function make_train_function metrics_names predict predict_function
    predict_on_batch predict_step reset_metrics run_eagerly save save_weights set_state_tree
    stateless_compute_loss steps_per_execution summary test_function test_on_batch test_step to_json
    train_function train_on_batch train_step unrolled_steps_per_execution
    """.split()
)
