-- What Quarto does and Pandoc alone does not. Metadata: home, the site's address; root, the way from a page's
-- folder to the first; page, where figures have numbers and references a section; mathml, if it draws them.
local home, root, page, mathml, figures, count, cited = "", "", false, false, {}, 0, false

local function retarget(url)
  if home ~= "" and url:sub(1, #home) == home then url = root .. url:sub(#home + 1) end
  local folder, name, anchor = url:match("^([^#:]*/)([^#/:]*)(.*)$")
  if not folder then folder, name, anchor = "", url:match("^([^#/:]*)(.*)$") end
  local notebook, text = name:match("^(.+)%.ipynb$"), name:match("^(.+)%.q?md$")
  if notebook then text = notebook:gsub("^%d+%a?_", "") end
  return folder:gsub("^%./", "") .. (text and text .. ".html" or name) .. anchor
end

local settings = {
  Meta = function(meta)
    home, root = pandoc.utils.stringify(meta.home or ""), pandoc.utils.stringify(meta.root or "")
    page, mathml = meta.page ~= nil, meta.mathml ~= nil
  end
}

local numbers = {
  Figure = function(figure)
    local label = figure.identifier
    if not label:match("^fig%-") or not page then return end
    count = count + 1
    figures[label] = "Figure " .. count
    local first = figure.caption.long[1]
    if first then first.content:insert(1, pandoc.Str(figures[label] .. ": ")) end
    return figure
  end
}

local rest = {
  Cite = function(cite)
    local out = pandoc.Inlines {}
    for i, one in ipairs(cite.citations) do
      if not one.id:match("^fig%-") then cited = true return end
      if i > 1 then out:extend { pandoc.Str(","), pandoc.Space() } end
      local number = figures[one.id]
      out:insert(number and pandoc.Link(number, "#" .. one.id) or pandoc.Str("the figure"))
    end
    return out
  end,
  Link = function(link)
    if not page and not link.target:match("^%a+:") then return link.content end  -- a lecture stands by itself
    link.target = retarget(link.target)
    return link
  end,
  -- As wide as their words: Pandoc would count dashes. They scroll by themselves where they are too wide.
  Table = function(tbl)
    tbl.colspecs = tbl.colspecs:map(function(spec) return { spec[1], nil } end)
    return pandoc.Div(tbl, { class = "scroll" })
  end,
  CodeBlock = function(block)
    if block.classes[1] ~= "mermaid" then return end
    local text = block.text:gsub("[&<>]", { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;" })
    return pandoc.RawBlock("html", '<div class="scroll"><pre class="mermaid">\n' .. text .. "\n</pre></div>")
  end,
  Math = function(math)
    if not mathml then return end
    math.text = math.text:gsub("\\tag{([^}]*)}", "\\qquad\\text{(%1)}")  -- MathML has no numbers
    return math
  end,
  Pandoc = function(doc)
    if page and cited then
      doc.blocks:insert(pandoc.Header(2, "References", { id = "references" }))
      doc.blocks:insert(pandoc.Div({}, { id = "refs" }))
    end
    return doc
  end
}

return { settings, numbers, rest }
