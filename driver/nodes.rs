// SPDX-License-Identifier: GPL-2.0

//! What the module registers with the kernel when it is loaded.

use super::{
    control::ControlFile,
    ioctl::DevFile,
    registry::{
        Registry,
        CONTROL_INDEX, //
    },
    validate,
    vdpa::DriverSide, //
};
use crate::bindings::{
    chrdev::{
        DeviceNumbers,
        Node,
        Registration, //
    },
    cred::Owner,
    vdpa::mgmt::{
        AddContext,
        ManagementOperations, //
    },
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// The management device of the vDPA bus, through which userspace adds devices to the bus.
pub(crate) struct Management(Arc<Registry>);

impl Management {
    pub(crate) fn new(registry: Arc<Registry>) -> Self {
        Self(registry)
    }
}

impl ManagementOperations for Management {
    const DEVICE_IDS: &'static [u32] = validate::DEVICE_IDS;

    type Device = DriverSide;

    fn dev_add(&self, name: &CStr, context: AddContext<'_, DriverSide>) -> Result {
        let (index, attached) = self.0.attach(name)?;
        attached.log_hidden(name);
        let side = DriverSide::new(attached)?;
        // `parent` is declared after `side`, and therefore dropped first. `side` keeps the device
        // attached. A device that is no longer attached can be destroyed, and userspace must not
        // see the node of a destroyed device.
        let parent = self.0.node(index)?;
        let (ngroups, nas) = side.counts();
        let suspension = side.suspension();
        let callbacks = side.callbacks();

        context.add(ngroups, nas, suspension, callbacks, side, parent)
    }
}

/// The device nodes of this module. Fields are dropped in declaration order.
pub(crate) struct Nodes {
    _node: Node<()>,
    _control: Registration<ControlFile>,
    _devices: Registration<DevFile>,
}

impl Nodes {
    /// Registers the device nodes. The file operations of the control node are registered last.
    ///
    /// This must be the last step of loading the module. Once the control node has its file
    /// operations, a process may have a file open, and a module that fails to load does not wait
    /// for that file to be closed.
    pub(crate) fn new(registry: &Arc<Registry>) -> Result<Self> {
        let numbers = &registry.numbers;
        let devices = Registration::new(
            numbers.clone(),
            CONTROL_INDEX + 1..DeviceNumbers::MAX,
            registry.clone(),
        )?;
        let node = Node::new::<()>(
            registry.class.clone(),
            numbers.clone(),
            CONTROL_INDEX,
            c"control",
            Owner::ROOT,
            Arc::new((), GFP_KERNEL)?,
        )?;
        let control = Registration::new(
            numbers.clone(),
            CONTROL_INDEX..CONTROL_INDEX + 1,
            registry.clone(),
        )?;

        Ok(Self {
            _node: node,
            _control: control,
            _devices: devices,
        })
    }
}
