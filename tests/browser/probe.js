// What the tests ask of the front end's page: where things are drawn, what is wrong with the graph and its drawing.
if (window === top) {
  // What was open is not restored: the dialog about a template's missing models would come back with it and lie above
  // the canvas.
  localStorage.clear()
  sessionStorage.clear()
}
localStorage.setItem('vueNodesBannerDismissed', 'true') // the banner about Nodes 2.0, as if closed before

window.probe = {
  run: null, // how the last run ended: 'success' or 'error', null while it goes on

  // The front end has come up and has opened the workflow that it begins with.
  ready: () =>
    Boolean(window.app?.extensionManager?.workflow?.activeWorkflow) && !document.querySelector('.p-blockui-mask'),

  own: () =>
    app.graph.nodes
      .filter((node) => node.type.startsWith('LCMLoRA_'))
      .map((node) => ({
        id: String(node.id),
        type: node.type,
        title: node.title,
        slots: (node.inputs ?? []).filter((slot) => !slot.widget).map((slot) => slot.name),
        widgets: (node.widgets ?? []).map((widget) => widget.name),
        drawn: (node.widgets ?? [])
          .filter((widget) => !widget.element && node.isWidgetVisible(widget))
          .map((widget) => widget.name)
      })),

  // Marks the graph that is open; `replaced` once another one has taken its place.
  mark: () => app.graph.nodes.forEach((node) => (node.left = true)),
  replaced: (count) => app.graph.nodes.length === count && app.graph.nodes.every((node) => !node.left),

  // The view's scale and offset, once they have stood still for 5 frames.
  async still() {
    let seen = null
    for (let frames = 0; frames < 5; frames++) {
      await new Promise(requestAnimationFrame)
      const now = JSON.stringify([app.canvas.ds.scale, ...app.canvas.ds.offset])
      if (now !== seen) frames = 0
      seen = now
    }
    return true
  },

  toClient(x, y) {
    const box = app.canvas.canvas.getBoundingClientRect()
    const [left, top] = app.canvas.ds.convertOffsetToCanvas([x, y])
    return [box.left + left, box.top + top]
  },

  // Client coordinates of a node's title, or of its input or widget of that name; moved to the middle if covered.
  point(id, name) {
    const node = app.graph.getNodeById(id)
    const widget = node.widgets?.find((widget) => widget.name === name)
    const slot = node.inputs?.findIndex((slot) => slot.name === name)
    let [x, y] = [node.pos[0] + 50, node.pos[1] - 15]
    if (widget) [x, y] = [node.pos[0] + node.size[0] / 2, node.pos[1] + (widget.last_y ?? widget.y) + 10]
    else if (name !== 'title') [x, y] = node.getConnectionPos(true, slot)
    if (document.elementFromPoint(...this.toClient(x, y)) !== app.canvas.canvas) {
      const { ds, canvas } = app.canvas
      ds.offset[0] = canvas.clientWidth / 2 / ds.scale - x
      ds.offset[1] = canvas.clientHeight / 2 / ds.scale - y
      app.canvas.draw(true, true)
    }
    return this.toClient(x, y)
  },

  // Where something lies in the graph; a node's title is above its place.
  box: ({ pos, size }, title = 30) => ({
    left: pos[0],
    top: pos[1] - title,
    right: pos[0] + size[0],
    bottom: pos[1] + size[1]
  }),

  // [left, top, right, bottom] in client coordinates of a node, or of the whole graph with its groups.
  area(id) {
    const { nodes, groups } = app.graph
    const boxes =
      id === undefined
        ? [...nodes.map((node) => this.box(node)), ...groups.map((group) => this.box(group, 0))]
        : [this.box(app.graph.getNodeById(id))]
    const end = (pick, side) => pick(...boxes.map((box) => box[side]))
    return [
      ...this.toClient(end(Math.min, 'left'), end(Math.min, 'top')),
      ...this.toClient(end(Math.max, 'right'), end(Math.max, 'bottom'))
    ]
  },

  // Gives the widgets of nodes values, {id: {name: value}}.
  standIn(values) {
    for (const [id, named] of Object.entries(values))
      for (const widget of app.graph.getNodeById(id).widgets ?? [])
        if (widget.name in named) widget.value = named[widget.name]
  },

  // Nodes that the host has not, and choices that it does not offer.
  unknown() {
    const found = []
    for (const node of app.graph.nodes) {
      if (!LiteGraph.registered_node_types[node.type]) found.push(`${node.type} is not a node here`)
      for (const { type, name, value, options } of node.widgets ?? [])
        if (type === 'combo' && Array.isArray(options.values) && !options.values.includes(value))
          found.push(`${node.title}: ${name} offers no ${value}`)
    }
    return found
  },

  // Output nodes that have pictures, and whether the canvas has loaded them all.
  pictures() {
    const ends = this.outputs()
    const shown = Object.entries(app.nodeOutputs).filter(([id, output]) => ends.includes(id) && output?.images?.length)
    return shown.map(([id, output]) => {
      const images = app.graph.getNodeById(id)?.imgs ?? []
      const loaded = images.filter((image) => image.complete && image.naturalWidth)
      return { id, files: output.images, loaded: loaded.length === output.images.length }
    })
  },

  // The nodes that end a graph: they save or show something.
  outputs: () =>
    app.graph.nodes.filter((node) => node.constructor.nodeData?.output_node).map((node) => String(node.id)),

  watchRun() {
    this.run = null
    const end = (event) => (this.run = event.type.replace('execution_', ''))
    for (const type of ['execution_success', 'execution_error', 'execution_interrupted'])
      app.api.addEventListener(type, end, { once: true })
  },

  // What is wrong with a graph that fits the window: too large for text, overlapping nodes, cut titles and values,
  // notes that have to be scrolled.
  defects() {
    const found = app.canvas.low_quality ? ['the graph is so large that its nodes are drawn without text'] : []
    const { ctx } = app.canvas
    const named = (node) => `'${node.title}' at ${Array.from(node.pos, Math.round)}`
    const wide = (font, ...texts) => {
      ctx.save()
      ctx.font = font
      const width = texts.reduce((sum, text) => sum + ctx.measureText(String(text ?? '')).width, 0)
      ctx.restore()
      return width
    }
    app.graph.nodes.forEach((node, index) => {
      const a = this.box(node)
      for (const other of app.graph.nodes.slice(index + 1)) {
        const b = this.box(other)
        if (a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom)
          found.push(`${named(node)} and ${named(other)} overlap`)
      }
      if (wide(node.titleFontStyle, node.title) > node.size[0] - 60) found.push(`the title of ${named(node)} is cut`)
      const [high, need] = [node.size[1], node.computeSize()[1]].map(Math.round)
      if (!node.imgs && high < need - 1) found.push(`${named(node)} is ${high} high and needs ${need}`)
      for (const widget of node.widgets ?? []) {
        if (widget.element) {
          const parts = node.type.endsWith('Note') ? [widget.element, ...widget.element.querySelectorAll('*')] : []
          const styles = parts.map((part) => [part, getComputedStyle(part)])
          const seen = styles.filter(([, style]) => style.overflowY !== 'visible' && style.opacity !== '0')
          if (!seen.length && parts.length) found.push(`the text of ${named(node)} is not found`)
          if (seen.some(([part]) => part.scrollHeight > part.clientHeight + 2))
            found.push(`the text of ${named(node)} has to be scrolled`)
        } else if (['number', 'slider', 'combo', 'text'].includes(widget.type) && node.isWidgetVisible(widget)) {
          const room = node.size[0] - (widget.type === 'text' ? 65 : 90)
          if (wide(node.innerFontStyle, widget.label ?? widget.name, widget._displayValue) > room)
            found.push(`${widget.name} of ${named(node)} is cut`)
        }
      }
    })
    return found
  }
}
