// What the pack's nodes tell, drawn in them: from a node's outputs, and while it runs. As text, never as HTML.
import { api } from '../../../scripts/api.js'
import { app } from '../../../scripts/app.js'

const NAME = 'lcm_lora_text'
const HEIGHT = 58 // of the host's progress text
const COLOURS = { info: 'var(--input-text)', warning: 'var(--p-orange-400, orange)' }

const isOurs = (node) => node?.type?.startsWith('LCMLoRA_')
const root = () => app.rootGraph ?? app.graph

// The host names a node of a subgraph by the way to it while it runs, `3:5`, and by the subgraph in its outputs.
const running = (id) => id.split(':').reduce((inner, step) => (inner?.subgraph ?? inner)?.getNodeById(step), root())
const holding = (id) => {
  const [node, subgraph] = id.split(':').reverse()
  return (subgraph ? root().subgraphs.get(subgraph) : root())?.getNodeById(node)
}

function line(text, level) {
  const element = document.createElement('div')
  element.textContent = level === 'warning' ? `⚠ ${text}` : text
  element.style.color = COLOURS[level]
  return element
}

function addWidget(node) {
  const element = document.createElement('div')
  element.className = 'lcm-lora-text'
  element.style.cssText = 'overflow: auto; white-space: pre-wrap; overflow-wrap: anywhere; user-select: text; font-size: 12px'
  const widget = node.addDOMWidget(NAME, NAME, element, { getMinHeight: () => HEIGHT, serialize: false })
  widget.serialize = false
  return widget
}

function show(node, output) {
  if (!isOurs(node) || !Array.isArray(output?.text)) return
  const { text, levels } = output
  let widget = node.widgets?.find(({ name }) => name === NAME)
  if (widget && !text.length) node.removeWidget(widget)
  if (text.length) (widget ?? addWidget(node)).element.replaceChildren(...text.map((part, i) => line(part, levels?.[i])))
  node.setDirtyCanvas(true, true)
}

app.registerExtension({
  name: 'LCM-LoRA.Text',
  setup: () => api.addEventListener('lcm_lora.told', ({ detail }) => show(running(detail.node), detail)),
  beforeRegisterNodeDef(nodeType, { name }) {
    if (!name.startsWith('LCMLoRA_')) return
    const { onExecuted } = nodeType.prototype
    nodeType.prototype.onExecuted = function (output) {
      onExecuted?.call(this, output)
      show(this, output)
    }
  },
  onNodeOutputsUpdated(outputs) {
    for (const [id, output] of Object.entries(outputs)) show(holding(id), output)
  }
})
